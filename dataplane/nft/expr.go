package nft

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// hooks gives the kernel's numbers of the hooks of family inet.
func hooks() map[string]nftables.ChainHook {
	return map[string]nftables.ChainHook{
		"prerouting": unix.NF_INET_PRE_ROUTING, "input": unix.NF_INET_LOCAL_IN, "forward": unix.NF_INET_FORWARD,
		"output": unix.NF_INET_LOCAL_OUT, "postrouting": unix.NF_INET_POST_ROUTING,
	}
}

func hookName(h nftables.ChainHook) string {
	for name, number := range hooks() {
		if number == h {
			return name
		}
	}
	return fmt.Sprintf("hook %d", h)
}

func newChain(t *nftables.Table, name string, o desired.NFTObject) (*nftables.Chain, error) {
	hook, ok := hooks()[o.Hook]
	if !ok {
		return nil, fmt.Errorf("chain %s: hook %q: must be prerouting, input, forward, output or postrouting", name, o.Hook)
	}
	if o.Type != string(nftables.ChainTypeFilter) && o.Type != string(nftables.ChainTypeNAT) {
		return nil, fmt.Errorf("chain %s: type %q: must be filter or nat", name, o.Type)
	}
	accept := nftables.ChainPolicyAccept
	return &nftables.Chain{
		Table: t, Name: name, Type: nftables.ChainType(o.Type), Hooknum: &hook,
		Priority: nftables.ChainPriorityRef(nftables.ChainPriority(o.Priority)), Policy: &accept,
	}, nil
}

// reg is the register that every condition is evaluated in.
const reg = 1

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

// expressions is a rule in the kernel's words, as nft(8) would write them.
func expressions(r desired.Rule) ([]expr.Any, error) {
	var out []expr.Any
	if r.In != "" {
		out = append(out, meta(expr.MetaKeyIIFNAME), compare(expr.CmpOpEq, interfaceName(r.In)))
	}
	if r.Out != "" {
		out = append(out, meta(expr.MetaKeyOIFNAME), compare(expr.CmpOpEq, interfaceName(r.Out)))
	}
	if r.UDPPort != 0 {
		out = append(out, meta(expr.MetaKeyL4PROTO), compare(expr.CmpOpEq, []byte{unix.IPPROTO_UDP}),
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(r.UDPPort)))
	}
	if r.Protocol != 0 {
		out = append(out, meta(expr.MetaKeyL4PROTO), compare(expr.CmpOpEq, []byte{r.Protocol}))
	}
	if r.Src.IsValid() {
		out = append(out, prefix(r.Src)...)
	}
	out = append(out, lookup(r.SrcIn, true, false)...)
	out = append(out, lookup(r.SrcNotIn, true, true)...)
	for _, d := range r.DstNotIn {
		out = append(out, lookup(d, false, true)...)
	}
	if r.Spoofed {
		out = append(out, &expr.Fib{Register: reg, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true},
			compare(expr.CmpOpEq, make([]byte, 4)))
	}
	if r.SrcForeignTo {
		local := binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)
		out = append(out,
			&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagSADDR: true}, compare(expr.CmpOpEq, local),
			&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagSADDR: true, FlagOIF: true}, compare(expr.CmpOpNeq, local))
	}
	switch r.Do {
	case desired.Accept:
		out = append(out, &expr.Verdict{Kind: expr.VerdictAccept})
	case desired.Drop:
		out = append(out, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	case desired.Notrack:
		out = append(out, &expr.Notrack{})
	case desired.Masquerade:
		out = append(out, &expr.Masq{FullyRandom: true})
	default:
		return nil, fmt.Errorf("rule %q: action %q is not one of ours", r, r.Do)
	}
	return out, nil
}

// interfaceName is what a name is compared with: all of it with its padding, or
// only the beginning.
func interfaceName(name string) []byte {
	if start, ok := strings.CutSuffix(name, "*"); ok {
		return []byte(start)
	}
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return padded
}

// address loads the source or destination address, after asking for the family.
func address(v4, source bool) []expr.Any {
	family, offset, size := byte(unix.NFPROTO_IPV6), uint32(24), uint32(16)
	if source {
		offset = 8
	}
	if v4 {
		family, offset, size = unix.NFPROTO_IPV4, 16, 4
		if source {
			offset = 12
		}
	}
	return []expr.Any{
		meta(expr.MetaKeyNFPROTO), compare(expr.CmpOpEq, []byte{family}),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
	}
}

func lookup(m desired.SetMatch, source, not bool) []expr.Any {
	if m.Set == "" {
		return nil
	}
	return append(address(m.V4, source), &expr.Lookup{SourceRegister: reg, SetName: m.Set, Invert: not})
}

func prefix(p netip.Prefix) []expr.Any {
	size := p.Addr().BitLen() / 8
	return append(address(p.Addr().Is4(), true),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(size), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)},
		compare(expr.CmpOpEq, p.Masked().Addr().AsSlice()))
}

// between is a range as prefixes.
func between(from, to netip.Addr) []netip.Prefix {
	if !to.IsValid() || to.Less(from) {
		return nil
	}
	return slices.Clone(netipx.IPRangeFrom(from, to).Prefixes())
}

// last is the highest address of a family.
func last(a netip.Addr) netip.Addr {
	return netipx.PrefixLastIP(netip.PrefixFrom(a, 0).Masked())
}
