package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint"
	"github.com/manekinet/maneki/ipam"
)

// Error codes of our own, from 100 on (CNI specification, "Error").
const (
	CodeNoAddress = 100 // the pools have no address for this container
	CodeNameTaken = 101 // another container's host interface has the name that this one needs
	CodeBroken    = 102 // CHECK: the attachment is not as ADD made it
)

// encodeResult renders an attachment in the version of the configuration, as Calico's plugin does (spec/calico.md §4):
// the host's interface first, then the container's, to which every address belongs.
func encodeResult(r endpoint.Result, sandbox, cniVersion string, dns types.DNS) ([]byte, error) {
	out := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: r.HostInterface},
			{Name: r.IfName, Mac: r.MAC.String(), Mtu: r.MTU, Sandbox: sandbox},
		},
		DNS: dns,
	}
	for _, p := range r.Addresses {
		out.IPs = append(out.IPs, &types100.IPConfig{Interface: types100.Int(1), Address: ipNet(p)})
	}
	for _, route := range r.Routes {
		if !route.Gateway.IsValid() {
			continue // the gateway's own route is how the default route works, not a way to somewhere
		}
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(route.Dst), GW: route.Gateway.AsSlice()})
	}
	converted, err := out.GetAsVersion(cniVersion)
	if err != nil {
		return nil, types.NewError(types.ErrIncompatibleCNIVersion, "result cannot be given in version "+cniVersion, err.Error())
	}
	var b bytes.Buffer
	if err := converted.PrintTo(&b); err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return b.Bytes(), nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// previousAddresses are the addresses that ADD gave to this interface, out of prevResult. Plugins after ours may have
// added interfaces and addresses of their own.
func previousAddresses(conf *config, ifName string) ([]netip.Prefix, error) {
	if err := version.ParsePrevResult(&conf.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult cannot be read", err.Error())
	}
	if conf.PrevResult == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing", "CHECK needs the result of ADD")
	}
	prev, err := types100.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult cannot be read", err.Error())
	}
	var out []netip.Prefix
	for _, ip := range prev.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(prev.Interfaces) {
			if dev := prev.Interfaces[*i]; dev.Name != ifName || dev.Sandbox == "" {
				continue
			}
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		ones, _ := ip.Address.Mask.Size()
		if !ok {
			return nil, types.NewError(types.ErrDecodingFailure, "prevResult holds an address that is none", ip.String())
		}
		out = append(out, netip.PrefixFrom(a.Unmap(), ones))
	}
	return out, nil
}

// toError gives an error its CNI code.
func toError(err error) *types.Error {
	var own *types.Error
	if errors.As(err, &own) {
		return own
	}
	const again = "the runtime may try again; see the log of the agent and 'maneki node status'"
	for _, c := range []struct {
		is      error
		code    uint
		details string
	}{
		{endpoint.ErrNotNetns, types.ErrInvalidNetNS, "CNI_NETNS must name the network namespace of the container"},
		{endpoint.ErrInvalid, types.ErrInvalidNetworkConfig, "correct the value and try again"},
		{endpoint.ErrNameTaken, CodeNameTaken, "give the container another ID, or remove the other one"},
		{endpoint.ErrBroken, CodeBroken, "delete the container's interface and add it again"},
		{endpoint.ErrNotReady, types.ErrTryAgainLater, again},
		{datastore.ErrUnavailable, types.ErrTryAgainLater, again},
		{context.DeadlineExceeded, types.ErrTryAgainLater, again},
		{context.Canceled, types.ErrTryAgainLater, again},
		{ipam.ErrExhausted, CodeNoAddress, "free addresses or add an IP pool: 'maneki ipam show'"},
		{ipam.ErrBlockLimit, CodeNoAddress, "this host has as many blocks as it may: 'maneki ipam show --show-configuration'"},
		{ipam.ErrNoQualifiedPool, CodeNoAddress, "no IP pool serves this node: 'maneki get ippools -o wide'"},
	} {
		if errors.Is(err, c.is) {
			return types.NewError(c.code, err.Error(), c.details)
		}
	}
	return types.NewError(types.ErrInternal, err.Error(), "see the log of the agent")
}
