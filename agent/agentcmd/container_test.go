package agentcmd

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agent"
	"github.com/manekinet/maneki/config"
)

func TestDockerRun(t *testing.T) {
	for _, tt := range []struct {
		name  string
		args  []string
		env   []string
		store config.Config
		want  string
	}{
		{
			name: "plain", args: []string{"--name=h1"},
			want: "docker run --net=host --pid=host --privileged --name=maneki-node -d --restart=always -e NODENAME=h1" +
				" -v /run/maneki:/run/maneki -v /var/lib/maneki:/var/lib/maneki -v /var/lib/calico:/var/lib/calico" +
				" -v /run/docker/plugins:/run/docker/plugins -v /var/run/docker.sock:/var/run/docker.sock maneki/node:v1 node run",
		},
		{
			name: "everything", args: []string{
				"--name=h1", "--ip=192.168.1.1", "--as=64513", "--label=rack=a", "--etcd-listen=http://192.168.1.1:2379", "--etcd-listen=http://10.0.0.1:2379",
				"--state-dir=/srv/m", "--node-image=my/node:2", "--init-system", "--log-dir=/x", "--no-default-ippools",
				"--ip-autodetection-method=interface=eth.*",
			},
			env:   []string{"HOME=/root", "ETCD_PASSWORD=secret", "ETCD_ENDPOINTS=https://e:2379", "AS=1", "CALICO_IPV4POOL_CIDR=10.0.0.0/8"},
			store: config.Config{EtcdCACertFile: "/etc/ssl/ca.pem"},
			want: "docker run --net=host --pid=host --privileged --name=maneki-node --rm -e NODENAME=h1 -e AS=1 -e CALICO_IPV4POOL_CIDR=10.0.0.0/8" +
				" -e ETCD_ENDPOINTS=https://e:2379 -e ETCD_PASSWORD" +
				" -v /run/maneki:/run/maneki -v /srv/m:/srv/m -v /var/lib/calico:/var/lib/calico" +
				" -v /run/docker/plugins:/run/docker/plugins -v /var/run/docker.sock:/var/run/docker.sock -v /etc/ssl/ca.pem:/etc/ssl/ca.pem:ro" +
				" my/node:2 node run --as=64513 --etcd-listen=http://192.168.1.1:2379 --etcd-listen=http://10.0.0.1:2379" +
				" --ip=192.168.1.1 '--ip-autodetection-method=interface=eth.*' --label=rack=a --no-default-ippools=true --state-dir=/srv/m",
		},
	} {
		f := &flags{}
		c := f.command("v1", func(*cobra.Command) error { return nil })
		c.SetArgs(tt.args)
		if err := c.Execute(); err != nil {
			t.Fatal(err)
		}
		got := shellWords(f.dockerRun(c, agent.Options{Node: "other", Datastore: tt.store}, "v1", tt.env, func(path string) bool { return strings.HasSuffix(path, ".pem") }))
		if got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
}
