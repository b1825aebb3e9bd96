package probe

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The few messages of nfnetlink that the probes need
// (include/uapi/linux/netfilter/nf_tables.h).
const (
	tableName   = "probe"
	nftRequired = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE

	attrTableName = 1 // NFTA_TABLE_NAME
	attrOfTable   = 1 // NFTA_CHAIN_TABLE, NFTA_SET_TABLE
	attrChainName = 3 // NFTA_CHAIN_NAME
	attrChainHook = 4 // NFTA_CHAIN_HOOK
	attrChainType = 7 // NFTA_CHAIN_TYPE
	attrHookNum   = 1 // NFTA_HOOK_HOOKNUM
	attrHookPrio  = 2 // NFTA_HOOK_PRIORITY
	attrSetName   = 2 // NFTA_SET_NAME
	attrSetFlags  = 3 // NFTA_SET_FLAGS
	attrKeyType   = 4 // NFTA_SET_KEY_TYPE
	attrKeyLen    = 5 // NFTA_SET_KEY_LEN
	attrSetID     = 10
	setInterval   = 0x4
	typeIPv4Addr  = 7
	postrouting   = 4
	prioritySrc   = 100
	nestedAttr    = 0x8000
)

func addTable(*netlink.Handle) error {
	return batch(unix.NFT_MSG_NEWTABLE, text(attrTableName, tableName))
}

func addSet(*netlink.Handle) error {
	return batch(unix.NFT_MSG_NEWSET, text(attrOfTable, tableName), text(attrSetName, "nets"), number(attrSetFlags, setInterval),
		number(attrKeyType, typeIPv4Addr), number(attrKeyLen, 4), number(attrSetID, 1))
}

func addNATChain(*netlink.Handle) error {
	hook := append(number(attrHookNum, postrouting), number(attrHookPrio, prioritySrc)...)
	return batch(unix.NFT_MSG_NEWCHAIN, text(attrOfTable, tableName), text(attrChainName, "snat"),
		attribute(attrChainHook|nestedAttr, hook), text(attrChainType, "nat"))
}

func attribute(kind uint16, value []byte) []byte {
	b := make([]byte, 4, 4+len(value)+3)
	binary.NativeEndian.PutUint16(b, uint16(4+len(value)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	b = append(b, value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func text(kind uint16, value string) []byte { return attribute(kind, append([]byte(value), 0)) }

func number(kind uint16, value uint32) []byte {
	return attribute(kind, binary.BigEndian.AppendUint32(nil, value))
}

// message is one netlink message with the header of nfnetlink.
func message(kind, flags uint16, family uint8, sequence uint32, resource uint16, attrs ...[]byte) []byte {
	b := make([]byte, 20)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags)
	binary.NativeEndian.PutUint32(b[8:], sequence)
	b[16] = family
	binary.BigEndian.PutUint16(b[18:], resource)
	for _, a := range attrs {
		b = append(b, a...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

// batch sends one message to nf_tables, in the namespace of the calling thread,
// and returns what the kernel says of it.
func batch(kind uint16, attrs ...[]byte) error {
	const wanted = 2 // the sequence number of the message
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return err
	}
	family := uint8(unix.NFPROTO_IPV4)
	packet := message(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 0, 1, unix.NFNL_SUBSYS_NFTABLES)
	packet = append(packet, message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, nftRequired, family, wanted, 0, attrs...)...)
	packet = append(packet, message(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 0, 3, unix.NFNL_SUBSYS_NFTABLES)...)
	if err := unix.Sendto(fd, packet, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	return readAck(fd, wanted)
}

// readAck waits for the kernel's word on the message with this number; an error
// on the whole batch carries another one.
func readAck(fd int, wanted uint32) error {
	buffer := make([]byte, 1<<14)
	for range 8 {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if err != nil {
			return fmt.Errorf("wait for nf_tables: %w", err)
		}
		for rest := buffer[:n]; len(rest) >= 20; {
			size := int(binary.NativeEndian.Uint32(rest))
			if size < 20 || size > len(rest) {
				return fmt.Errorf("nf_tables answered with a message of %d bytes", size)
			}
			if binary.NativeEndian.Uint16(rest[4:]) == unix.NLMSG_ERROR {
				code := int32(binary.NativeEndian.Uint32(rest[16:]))
				switch {
				case code != 0:
					return unix.Errno(-code)
				case binary.NativeEndian.Uint32(rest[8:]) == wanted:
					return nil
				}
			}
			rest = rest[min(len(rest), (size+3)&^3):]
		}
	}
	return fmt.Errorf("nf_tables did not answer")
}
