package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// bird is the control socket of a BIRD: lines with a code of four digits, the last
// of an answer with a blank after it.
type bird struct {
	conn net.Conn
	in   *bufio.Reader
}

func dialBIRD(socket string) (*bird, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	b := &bird{conn: c, in: bufio.NewReader(c)}
	_, err = b.answer() // the greeting
	return b, err
}

func (b *bird) answer() (string, error) {
	for {
		line, err := b.in.ReadString('\n')
		if err != nil {
			return "", err
		}
		if len(line) > 4 && line[4] == ' ' && line[0] != ' ' {
			return strings.TrimSpace(line), nil
		}
	}
}

// order gives a command; the time counts from when it was given, because BIRD has
// acted on it when it answers.
func (b *bird) order(ctx context.Context, command string) (time.Time, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := b.conn.SetDeadline(deadline); err != nil {
			return time.Time{}, err
		}
	}
	began := time.Now()
	if _, err := fmt.Fprintln(b.conn, command); err != nil {
		return began, err
	}
	answer, err := b.answer()
	if err == nil && answer[0] != '0' {
		err = fmt.Errorf("bird refuses %q: %s", command, answer)
	}
	return began, err
}

func (b *bird) name() string { return "bird" }

func (b *bird) put(ctx context.Context, _ netip.Prefix) (time.Time, error) {
	return b.order(ctx, "enable blocks")
}

func (b *bird) drop(ctx context.Context, _ netip.Prefix) (time.Time, error) {
	return b.order(ctx, "disable blocks")
}

func (b *bird) next(block netip.Prefix) netip.Prefix { return block }
