package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// reg is the first 32-bit register; the parts of a concatenated key follow each other from it.
const reg = unix.NFT_REG_1

// register is the n-th 32-bit register, by the name that the kernel lists it with: every fourth is the beginning of one
// of 128 bits, which have numbers of their own.
func register(n uint32) uint32 {
	if n%4 == 0 {
		return unix.NFT_REG_1 + n/4
	}
	return unix.NFT_REG32_00 + n
}

// natFullyRandom is NF_NAT_RANGE_PROTO_RANDOM_FULLY.
const natFullyRandom = 1 << 4

// maxKey is the length in bytes of all registers together.
const maxKey = 64

// compiler turns a rule into the kernel's expressions, as nft(8) would write them.
type compiler struct {
	out    []expr.Any
	family uint8 // that the rule has asked for already
}

// expressions is a rule in the kernel's words.
func expressions(r desired.Rule) ([]expr.Any, error) {
	c := &compiler{}
	for _, m := range r.Match {
		if err := c.match(m); err != nil {
			return nil, fmt.Errorf("rule %q: %w", r, err)
		}
	}
	if r.Limit != (desired.Limit{}) {
		c.add(&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(r.Limit.PerSecond), Unit: expr.LimitTimeSecond, Burst: r.Limit.Burst})
	}
	if r.Counter {
		c.add(&expr.Counter{})
	}
	c.log(r.Log)
	c.mark(r.Mark)
	if err := c.action(r); err != nil {
		return nil, fmt.Errorf("rule %q: %w", r, err)
	}
	return c.out, nil
}

func (c *compiler) add(e ...expr.Any) { c.out = append(c.out, e...) }

func (c *compiler) meta(key expr.MetaKey) { c.add(&expr.Meta{Key: key, Register: reg}) }

func (c *compiler) compare(not bool, data []byte) {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	c.add(&expr.Cmp{Op: op, Register: reg, Data: data})
}

func native(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func port(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }

func (c *compiler) match(m desired.Match) error {
	switch m.Kind {
	case desired.MatchInterface:
		c.load(m.Field, reg)
		c.compare(m.Not, interfaceName(m.Name))
	case desired.MatchFamily:
		c.meta(expr.MetaKeyNFPROTO)
		c.compare(m.Not, []byte{familyNumber(uint8(m.Num))})
	case desired.MatchProto:
		c.meta(expr.MetaKeyL4PROTO)
		c.compare(m.Not, []byte{byte(m.Num)})
	case desired.MatchNet:
		c.net(m)
	case desired.MatchPort:
		c.load(m.Field, reg)
		c.ports(m)
	case desired.MatchUDPPort:
		c.meta(expr.MetaKeyL4PROTO)
		c.compare(false, []byte{unix.IPPROTO_UDP})
		c.load(desired.FieldDstPort, reg)
		c.compare(m.Not, port(m.From))
	case desired.MatchICMP:
		c.icmp(m)
	case desired.MatchICMPRange:
		op := expr.CmpOpEq
		if m.Not {
			op = expr.CmpOpNeq
		}
		c.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Len: 1},
			&expr.Range{Op: op, Register: reg, FromData: []byte{byte(m.Num)}, ToData: []byte{byte(m.To)}})
	case desired.MatchState:
		c.add(&expr.Ct{Key: expr.CtKeySTATE, Register: reg})
		c.anyBit(uint32(m.States), m.Not)
	case desired.MatchSet:
		if err := c.key(m.Key); err != nil {
			return err
		}
		c.add(&expr.Lookup{SourceRegister: reg, SetName: m.Name, Invert: m.Not})
	case desired.MatchMark:
		c.meta(expr.MetaKeyMARK)
		c.anyBit(m.Num, m.Not)
	case desired.MatchSpoofed:
		c.add(&expr.Fib{Register: reg, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true})
		c.compare(false, make([]byte, 4))
	case desired.MatchForeignSrc:
		local := native(unix.RTN_LOCAL)
		c.add(&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagSADDR: true})
		c.compare(false, local)
		c.add(&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagSADDR: true, FlagOIF: true})
		c.compare(true, local)
	case desired.MatchLocalDst:
		c.add(&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true})
		c.compare(m.Not, native(unix.RTN_LOCAL))
	default:
		return fmt.Errorf("match of kind %d is not one of ours", m.Kind)
	}
	return nil
}

// anyBit holds when one of the bits of the register is set.
func (c *compiler) anyBit(bits uint32, not bool) {
	c.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(bits), Xor: make([]byte, 4)})
	c.compare(!not, make([]byte, 4))
}

// load puts a field into a register; for a field of one family, after asking for the family.
func (c *compiler) load(f desired.Field, to uint32) {
	payload := func(base expr.PayloadBase, offset uint32) {
		c.add(&expr.Payload{DestRegister: to, Base: base, Offset: offset, Len: uint32(f.Type().Size())})
	}
	switch f {
	case desired.FieldIn:
		c.add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: to})
	case desired.FieldOut:
		c.add(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: to})
	case desired.FieldProto:
		c.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: to})
	case desired.FieldSrc4:
		payload(expr.PayloadBaseNetworkHeader, 12)
	case desired.FieldDst4:
		payload(expr.PayloadBaseNetworkHeader, 16)
	case desired.FieldSrc6:
		payload(expr.PayloadBaseNetworkHeader, 8)
	case desired.FieldDst6:
		payload(expr.PayloadBaseNetworkHeader, 24)
	case desired.FieldSrcPort:
		payload(expr.PayloadBaseTransportHeader, 0)
	case desired.FieldDstPort:
		payload(expr.PayloadBaseTransportHeader, 2)
	}
}

func (c *compiler) askFamily(n uint8) {
	if n != 0 && n != c.family {
		c.meta(expr.MetaKeyNFPROTO)
		c.compare(false, []byte{familyNumber(n)})
		c.family = n
	}
}

func familyNumber(n uint8) byte {
	if n == 4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// key loads the fields one after the other.
func (c *compiler) key(fields []desired.Field) error {
	size := 0
	for _, f := range fields {
		c.askFamily(f.Family())
		size += (f.Type().Size() + 3) &^ 3
	}
	if size == 0 || size > maxKey {
		return fmt.Errorf("key %v is of %d bytes: 1 to %d are allowed", fields, size, maxKey)
	}
	at := uint32(0)
	for _, f := range fields {
		c.load(f, register(at))
		at += uint32(f.Type().Size()+3) / 4
	}
	return nil
}

func (c *compiler) net(m desired.Match) {
	c.askFamily(m.Field.Family())
	c.load(m.Field, reg)
	bits := m.Net.Addr().BitLen()
	if !m.Net.IsSingleIP() {
		c.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(bits / 8), Mask: net.CIDRMask(m.Net.Bits(), bits), Xor: make([]byte, bits/8)})
	}
	c.compare(m.Not, m.Net.Masked().Addr().AsSlice())
}

func (c *compiler) ports(m desired.Match) {
	switch {
	case m.From == m.To:
		c.compare(m.Not, port(m.From))
	case m.Not:
		c.add(&expr.Range{Op: expr.CmpOpNeq, Register: reg, FromData: port(m.From), ToData: port(m.To)})
	default:
		c.add(&expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: port(m.From), ToData: port(m.To)})
	}
}

func (c *compiler) icmp(m desired.Match) {
	want := []byte{byte(m.Num)}
	if m.From >= 0 {
		want = append(want, byte(m.From))
	}
	c.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Len: uint32(len(want))})
	c.compare(m.Not, want)
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

func (c *compiler) log(l desired.Log) {
	const prefix = 1 << unix.NFTA_LOG_PREFIX
	switch {
	case l.Group != 0:
		c.add(&expr.Log{Key: prefix | 1<<unix.NFTA_LOG_GROUP, Group: l.Group, Data: []byte(l.Prefix)})
	case l.Kernel:
		c.add(&expr.Log{Key: prefix, Data: []byte(l.Prefix)})
	}
}

func (c *compiler) mark(m desired.Mark) {
	if m == (desired.Mark{}) {
		return
	}
	c.meta(expr.MetaKeyMARK)
	c.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(^(m.Clear | m.Set)), Xor: native(m.Set)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg})
}

func (c *compiler) action(r desired.Rule) error {
	verdicts := map[desired.Action]expr.VerdictKind{
		desired.Accept: expr.VerdictAccept, desired.Drop: expr.VerdictDrop, desired.Return: expr.VerdictReturn,
		desired.Jump: expr.VerdictJump, desired.Goto: expr.VerdictGoto,
	}
	switch r.Do {
	case "":
	case desired.Accept, desired.Drop, desired.Return, desired.Jump, desired.Goto:
		if jumps := r.Do == desired.Jump || r.Do == desired.Goto; jumps != (r.Chain != "") {
			return fmt.Errorf("action %q with chain %q: jump and goto name a chain, the others do not", r.Do, r.Chain)
		}
		c.add(&expr.Verdict{Kind: verdicts[r.Do], Chain: r.Chain})
	case desired.VMap:
		if err := c.key(r.Key); err != nil {
			return err
		}
		c.add(&expr.Lookup{SourceRegister: reg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: r.Map})
	case desired.Notrack:
		c.add(&expr.Notrack{})
	case desired.Reject:
		c.add(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
	case desired.Reset:
		c.add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	case desired.Masquerade, desired.SNAT, desired.DNAT:
		return c.nat(r)
	default:
		return fmt.Errorf("action %q is not one of ours", r.Do)
	}
	return nil
}

// nat loads the address into the first 128-bit register and the ports into the next two.
func (c *compiler) nat(r desired.Rule) error {
	const addr, low, high = unix.NFT_REG_1, unix.NFT_REG_2, unix.NFT_REG_3
	n := expr.NAT{Type: expr.NATTypeSourceNAT, FullyRandom: r.NAT.Random}
	if r.NAT.Addr.IsValid() {
		c.add(&expr.Immediate{Register: addr, Data: r.NAT.Addr.AsSlice()})
		n.RegAddrMin, n.RegAddrMax = addr, addr
		n.Family = unix.NFPROTO_IPV6
		if r.NAT.Addr.Is4() {
			n.Family = unix.NFPROTO_IPV4
		}
	} else if r.Do != desired.Masquerade {
		return fmt.Errorf("%s without an address", r.Do)
	}
	if r.NAT.From != 0 {
		c.add(&expr.Immediate{Register: low, Data: port(int(r.NAT.From))})
		n.RegProtoMin, n.RegProtoMax = low, low
		if r.NAT.To > r.NAT.From {
			c.add(&expr.Immediate{Register: high, Data: port(int(r.NAT.To))})
			n.RegProtoMax = high
		}
	}
	if r.Do == desired.Masquerade {
		c.add(&expr.Masq{FullyRandom: r.NAT.Random, ToPorts: n.RegProtoMin != 0, RegProtoMin: n.RegProtoMin, RegProtoMax: n.RegProtoMax})
		return nil
	}
	if r.Do == desired.DNAT {
		n.Type = expr.NATTypeDestNAT
	}
	c.add(&n)
	return nil
}

// marshal is the content of NFTA_RULE_EXPRESSIONS.
func marshal(exprs []expr.Any) ([]byte, error) {
	var out []byte
	for _, e := range exprs {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if m, ok := e.(*expr.Masq); ok {
			b = marshalMasq(m)
		}
		if err != nil {
			return nil, fmt.Errorf("encode expression: %w", err)
		}
		out = appendAttr(out, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, b)
	}
	if len(out) > maxAttr {
		return nil, fmt.Errorf("rule of %d bytes: at most %d are allowed", len(out), maxAttr)
	}
	return out, nil
}

// marshalMasq writes flags and ports; the library writes only one of them.
func marshalMasq(m *expr.Masq) []byte {
	b, at := openNested(appendText(nil, unix.NFTA_EXPR_NAME, "masq"), unix.NFTA_EXPR_DATA)
	if m.FullyRandom {
		b = appendNumber(b, unix.NFTA_MASQ_FLAGS, natFullyRandom)
	}
	if m.ToPorts {
		b = appendNumber(b, unix.NFTA_MASQ_REG_PROTO_MIN, m.RegProtoMin)
		b = appendNumber(b, unix.NFTA_MASQ_REG_PROTO_MAX, m.RegProtoMax)
	}
	return closeNested(b, at)
}

// canonical is the expressions of a rule without what the kernel changes or adds when it lists them: the values of
// counters, the order of attributes, and attributes that say nothing.
func canonical(exprs attributes) []byte {
	var out []byte
	exprs.each(func(_ uint16, e []byte) {
		name := attributes(e).text(unix.NFTA_EXPR_NAME)
		out = append(append(out, name...), 0)
		if name != "counter" {
			out = flatten(out, name, attributes(e).get(unix.NFTA_EXPR_DATA), 0)
		}
	})
	return out
}

// flatten writes attributes in the order of their types. The top level of an expression has numbers in 4 or 8 bytes;
// zeros there are defaults, which one side writes and the other leaves out.
func flatten(out []byte, name string, list attributes, depth int) []byte {
	type attr struct {
		typ  uint16
		data []byte
	}
	var all []attr
	list.each(func(typ uint16, data []byte) { all = append(all, attr{typ, data}) })
	slices.SortStableFunc(all, func(a, b attr) int { return int(a.typ) - int(b.typ) })
	for _, a := range all {
		if name == "nat" && a.typ == unix.NFTA_NAT_FLAGS && len(a.data) == 4 {
			// The kernel adds NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED according to the registers.
			a.data = []byte{0, 0, 0, a.data[3] &^ 3}
		}
		if depth == 0 && (isZero(a.data) || ignored(name, a.typ)) {
			continue
		}
		if isVerdict := depth == 1 && a.typ == unix.NFTA_DATA_VERDICT; isVerdict || depth == 0 && hasData(name, a.typ) {
			out = append(out, byte(depth), byte(a.typ))
			out = append(flatten(out, "", a.data, depth+1), 0xff)
			continue
		}
		out = append(out, byte(depth), byte(a.typ))
		out = binary.BigEndian.AppendUint16(out, uint16(len(a.data)))
		out = append(out, a.data...)
	}
	return out
}

// hasData reports whether an attribute of an expression holds a nested value or verdict.
func hasData(name string, typ uint16) bool {
	switch name {
	case "immediate":
		return typ == unix.NFTA_IMMEDIATE_DATA
	case "cmp":
		return typ == unix.NFTA_CMP_DATA
	case "bitwise":
		return typ == unix.NFTA_BITWISE_MASK || typ == unix.NFTA_BITWISE_XOR
	case "range":
		return typ == unix.NFTA_RANGE_FROM_DATA || typ == unix.NFTA_RANGE_TO_DATA
	}
	return false
}

func isZero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }

// ignored attributes are those that the kernel adds in listings.
func ignored(name string, typ uint16) bool {
	return name == "log" && typ == unix.NFTA_LOG_LEVEL || name == "limit" && typ == unix.NFTA_LIMIT_FLAGS
}
