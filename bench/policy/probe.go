package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// probe asks whether UDP from the client reaches the server now. Nobody answers,
// so that each packet is the first of a connection.
type probe struct {
	send *net.UDPConn
	recv *net.UDPConn
	to   netip.AddrPort
	last byte
	buf  []byte
}

const probePort = 9000

func newProbe(client, server space, from, to netip.Addr) (*probe, error) {
	p := &probe{buf: make([]byte, 64), to: netip.AddrPortFrom(to, probePort)}
	err := server.do(func() (err error) {
		p.recv, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(p.to))
		return err
	})
	return p, errors.Join(err, client.do(func() (err error) {
		p.send, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 9001)))
		return err
	}))
}

func (p *probe) close() {
	_ = p.send.Close()
	_ = p.recv.Close()
}

// interval is how long one packet is waited for: it takes 20 us.
const interval = 300 * time.Microsecond

// passes sends one packet and waits for it.
func (p *probe) passes(wait time.Duration) bool {
	_ = p.recv.SetReadDeadline(time.Now().Add(wait))
	p.last++
	if _, err := p.send.WriteToUDPAddrPort([]byte{p.last}, p.to); err != nil {
		return false
	}
	for {
		n, err := p.recv.Read(p.buf)
		switch {
		case err != nil:
			return false
		case n == 1 && p.buf[0] == p.last:
			return true
		}
	}
}

// patience is how long a verdict may take to change.
const patience = 20 * time.Second

// when returns the time of the first packet that got the verdict. A packet that
// was lost is believed when those after it are, too: on a busy machine one may
// be late.
func (p *probe) when(passes bool) (time.Time, error) {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		sent := time.Now()
		if p.passes(interval) != passes {
			continue
		}
		at := time.Now()
		if passes {
			return at, nil
		}
		again := p.passes(5 * time.Millisecond)
		if more := p.passes(5 * time.Millisecond); !again && !more {
			return sent, nil
		}
	}
	return time.Time{}, fmt.Errorf("the verdict did not become %v within %s", passes, patience)
}

func (p *probe) until(passes bool) error {
	_, err := p.when(passes)
	return err
}
