package autodetect

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func link(name string, up bool, addrs ...string) Interface {
	l := Interface{Name: name, Up: up}
	for _, a := range addrs {
		l.Addrs = append(l.Addrs, netip.MustParsePrefix(a))
	}
	return l
}

func rack() []Interface {
	return []Interface{
		link("lo", true, "127.0.0.1/8", "::1/128"),
		link("docker0", true, "172.17.0.1/16"),
		link("eth1", false, "10.1.0.5/24"),
		link("eth2", true, "fe80::1/64"),
		link("ens32", true, "192.168.59.156/24", "2001:db8::156/64"),
		link("ens33", true, "10.2.0.7/24"),
	}
}

func TestDetect(t *testing.T) {
	reach := func(dst netip.Addr) (netip.Addr, error) {
		if dst == netip.MustParseAddr("10.2.0.1") {
			return netip.MustParseAddr("10.2.0.7"), nil
		}
		return netip.Addr{}, errors.New("network is unreachable")
	}
	tests := []struct {
		method string
		family Family
		want   string // interface and prefix
		reason string // part of it
		err    string // part of it
	}{
		{method: "", family: 4, want: "ens32 192.168.59.156/24", reason: "first-found of 2 candidates"},
		{method: "first-found", family: 6, want: "ens32 2001:db8::156/64", reason: "first-found"},
		{method: "interface=ens33,ens32", family: 4, want: "ens33 10.2.0.7/24", reason: "interface matches ens33"},
		{method: "interface=eth.*", family: 4, err: "no IPv4 address found"},
		{method: "skip-interface=ens32", family: 4, want: "ens33 10.2.0.7/24", reason: "skip-interface"},
		{method: "can-reach=10.2.0.1", family: 4, want: "ens33 10.2.0.7/24", reason: "towards 10.2.0.1"},
		{method: "can-reach=10.9.0.1", family: 4, err: "no route to it"},
		{method: "can-reach=example", family: 4, err: "must be an IP address"},
		{method: "cidr=172.30.0.0/16,10.2.0.0/16", family: 4, want: "ens33 10.2.0.7/24", reason: "inside 10.2.0.0/16"},
		{method: "cidr=10.2.0.0", family: 4, err: "is not a CIDR"},
		{method: "interface=(", family: 4, err: "not a regular expression"},
		{method: "interface=", family: 4, err: "is not one of"},
		{method: "nearest", family: 4, err: `"nearest" is not one of: first-found`},
	}
	for _, tt := range tests {
		t.Run(tt.method, func(t *testing.T) {
			got, err := Detect(tt.method, tt.family, rack(), reach)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := got.Interface + " " + got.Prefix.String(); s != tt.want || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("chose %s because %q, want %s because %q", s, got.Reason, tt.want, tt.reason)
			}
		})
	}
}

func TestDetectRefusesAnAddressOnTwoInterfaces(t *testing.T) {
	links := []Interface{link("eth0", true, "10.0.0.1/24"), link("eth1", true, "10.0.0.1/24")}
	_, err := Detect("", 4, links, nil)
	if err == nil || !strings.Contains(err.Error(), "on both eth0 and eth1") {
		t.Fatalf("error %v", err)
	}
}

func TestErrorNamesWhatWasSeen(t *testing.T) {
	_, err := Detect("", 6, []Interface{link("docker0", true, "172.17.0.1/16"), link("eth0", false, "2001:db8::1/64")}, nil)
	want := "docker0 (up, excluded by name, no IPv6 address); eth0 (down, 2001:db8::1/64)"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("error %v, want %s", err, want)
	}
}
