package tunnels

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of SIOCETHTOOL (include/uapi/linux/ethtool.h): the features whose
// names begin with tx-checksum, together.
const (
	ethtoolGetTxCsum = 0x16 // ETHTOOL_GTXCSUM
	ethtoolSetTxCsum = 0x17 // ETHTOOL_STXCSUM
)

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ cmd, data uint32 }

// ethtoolRequest is struct ifreq with a pointer in it.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte // the rest of the union
}

// ethtool runs a command on a device of the namespace that the calling thread is
// in.
func ethtool(device string, cmd, data uint32) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	v := ethtoolValue{cmd, data}
	r := ethtoolRequest{data: unsafe.Pointer(&v)}
	copy(r.name[:unix.IFNAMSIZ-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r)))
	runtime.KeepAlive(&v)
	if errno != 0 {
		return 0, errno
	}
	return v.data, nil
}

// TxChecksum reports whether the kernel leaves checksums of packets that a
// device of the thread's namespace sends to whoever carries them on.
func TxChecksum(device string) (bool, error) {
	v, err := ethtool(device, ethtoolGetTxCsum, 0)
	if err != nil {
		return false, fmt.Errorf("read checksum offload of %s: %w", device, err)
	}
	return v != 0, nil
}

// stopTxChecksum has the kernel compute checksums itself.
func stopTxChecksum(device string) error {
	_, err := ethtool(device, ethtoolSetTxCsum, 0)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // there is none to turn off
		return fmt.Errorf("turn off checksum offload of %s: %w", device, err)
	}
	return nil
}
