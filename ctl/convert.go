package ctl

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/convert"
	"github.com/manekinet/maneki/exit"
)

func (a *app) convertCommand() *cobra.Command {
	var in inputFlags
	var output string
	c := &cobra.Command{
		Use:   "convert -f FILE",
		Short: "Print Kubernetes manifests as the resources they stand for",
		Long: `Print Kubernetes manifests as the resources they stand for: NetworkPolicy,
ClusterNetworkPolicy, Namespace and ServiceAccount. Resources of projectcalico.org
are printed as they are. The other verbs take such manifests too.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if output != "yaml" && output != "json" {
				return exit.New(exit.Usage, "use yaml or json", fmt.Errorf("unrecognized output format '%s'", output))
			}
			items, err := a.checkedInput(&in, "convert")
			if err != nil || len(items) == 0 {
				return err
			}
			show, err := printerFor(output)
			if err != nil {
				return err
			}
			for i, x := range items {
				if i > 0 && output == "yaml" {
					fmt.Fprintln(a.Stdout, "---")
				}
				if err := show(a.Stdout, []result{{kind: x.kind, object: x.object}}, tableContext{}); err != nil {
					return err
				}
			}
			return nil
		},
	}
	in.register(c)
	c.Flags().StringVarP(&output, "output", "o", "yaml", "yaml or json")
	return c
}

// fromKubernetes turns a manifest of Kubernetes into the resources it stands
// for.
func (in *inputFlags) fromKubernetes(text []byte, where string) ([]item, error) {
	// Where maneki applies a manifest nobody else does: it is about the containers of this network, whoever runs them.
	objects, err := convert.Options{AnyOrchestrator: true}.Manifest(text)
	if err != nil {
		return nil, err
	}
	var items []item
	for _, o := range objects {
		kind, err := api.LookupKind(o.Type().Kind)
		if err != nil {
			return nil, err
		}
		if kind.Namespaced {
			if err := in.placeInNamespace(kind, o); err != nil {
				return nil, err
			}
		}
		items = append(items, item{kind: kind, object: o, where: where})
	}
	return items, nil
}
