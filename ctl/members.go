package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/etcd"
	"github.com/manekinet/maneki/exit"
)

// cluster is what a datastore on etcd can do beside storing.
type cluster interface {
	Members(ctx context.Context) ([]etcd.Member, error)
	RemoveMember(ctx context.Context, id uint64) error
	Defragment(ctx context.Context, m etcd.Member) error
	Compact(ctx context.Context) error
	Disarm(ctx context.Context) (int, error)
	Backup(ctx context.Context, w io.Writer) (int64, error)
}

// withCluster opens the datastore for work on etcd itself.
func (a *app) withCluster(ctx context.Context, do func(ctx context.Context, c cluster) error) error {
	return a.withStore(ctx, func(ctx context.Context, s datastore.Store) error {
		c, ok := s.(cluster)
		if !ok {
			return exit.New(exit.General, "", errors.New("this command is for a datastore on etcd"))
		}
		return do(ctx, c)
	})
}

func (a *app) membersCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "members",
		Short: "List the hosts that keep the datastore",
		Long: `List the members of the etcd cluster that keeps the datastore, and what each says
of itself. It works in a minority, too.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return exit.New(exit.Usage, "use -o json, or leave it out", fmt.Errorf("unrecognized output format '%s'", output))
			}
			// The question whether the datastore answers is this command's own.
			store, err := a.openAny(c.Context())
			if err != nil {
				return err
			}
			defer store.Close()
			cl, ok := store.(cluster)
			if !ok {
				return exit.New(exit.General, "", errors.New("this command is for a datastore on etcd"))
			}
			return a.listMembers(c.Context(), cl, output == "json")
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "json for a document")
	c.AddCommand(&cobra.Command{
		Use:   "remove NAME|ID",
		Short: "Take a host out of those that keep the datastore",
		Long: `Take a member out of the etcd cluster, by its host's name or its ID in hexadecimal.
Its data are of no use afterwards. To bring the host back as a new member, move its
data directory away and start its agent with --join.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withCluster(c.Context(), func(ctx context.Context, cl cluster) error { return a.removeMember(ctx, cl, args[0]) })
		},
	})
	return c
}

// memberDocument is one member in -o json.
type memberDocument struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	State      string   `json:"state"`
	ClientURLs []string `json:"clientURLs"`
	PeerURLs   []string `json:"peerURLs"`
	Version    string   `json:"version,omitempty"`
	Size       int64    `json:"size,omitempty"`
	InUse      int64    `json:"inUse,omitempty"`
	Alarms     []string `json:"alarms,omitempty"`
	Error      string   `json:"error,omitempty"`
}

// memberState is a member's part in the cluster, in a word or two.
func memberState(m etcd.Member) string {
	switch {
	case m.Name == "":
		return "not started"
	case m.Err != nil:
		return "no answer"
	case m.Learner:
		return "learner"
	case m.Leader:
		return "leader"
	}
	return "follower"
}

func (a *app) listMembers(ctx context.Context, c cluster, asJSON bool) error {
	members, err := c.Members(ctx)
	if err != nil {
		return a.describe("get", "members", err)
	}
	if asJSON {
		docs := make([]memberDocument, 0, len(members))
		for _, m := range members {
			d := memberDocument{
				ID: strconv.FormatUint(m.ID, 16), Name: m.Name, State: memberState(m), ClientURLs: m.ClientURLs, PeerURLs: m.PeerURLs,
				Version: m.Version, Size: m.Size, InUse: m.InUse, Alarms: m.Alarms,
			}
			if m.Err != nil {
				d.Error = m.Err.Error()
			}
			docs = append(docs, d)
		}
		text, err := json.MarshalIndent(docs, "", "  ")
		if err != nil {
			return fmt.Errorf("print members: %w", err)
		}
		_, err = fmt.Fprintf(a.Stdout, "%s\n", text)
		return err
	}
	var rows [][]string
	voters, answering := 0, 0
	for _, m := range members {
		size, used := "-", "-"
		if m.Err == nil {
			size, used = bytesText(m.Size), bytesText(m.InUse)
		}
		if !m.Learner {
			voters++
			if m.Err == nil {
				answering++
			}
		}
		rows = append(rows, []string{
			strconv.FormatUint(m.ID, 16), m.Name, memberState(m), strings.Join(m.ClientURLs, ","), strings.Join(m.PeerURLs, ","), m.Version, size, used, strings.Join(m.Alarms, ","),
		})
	}
	if err := writeGrid(a.Stdout, []string{"ID", "NAME", "STATE", "CLIENT URLS", "PEER URLS", "VERSION", "SIZE", "IN USE", "ALARMS"}, rows); err != nil {
		return err
	}
	a.judge(voters, answering)
	return nil
}

// judge says what the numbers mean for the next failure.
func (a *app) judge(voters, answering int) {
	majority := voters/2 + 1
	switch {
	case answering < majority:
		a.warn(fmt.Sprintf("%d of %d members answer, %d are needed: nothing can be written until another comes back", answering, voters, majority))
	case voters == 2:
		a.warn("with two members the loss of either stops all writes; join a third")
	case answering < voters:
		a.warn(fmt.Sprintf("%d of %d members answer; %d more may fail", answering, voters, answering-majority))
	}
}

func bytesText(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", (n+1023)/1024)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

func (a *app) removeMember(ctx context.Context, c cluster, who string) error {
	members, err := c.Members(ctx)
	if err != nil {
		return a.describe("get", "members", err)
	}
	for _, m := range members {
		if m.Name != who && strconv.FormatUint(m.ID, 16) != who {
			continue
		}
		if len(members) == 1 {
			return exit.New(exit.Conflict, "", fmt.Errorf("%s is the only member: without it there is no datastore", who))
		}
		if err := c.RemoveMember(ctx, m.ID); err != nil {
			return a.describe("delete", "members", err)
		}
		fmt.Fprintf(a.Stdout, "Removed member %s (%x) from the datastore.\n", m.Name, m.ID)
		return nil
	}
	return exit.New(exit.NotFound, fmt.Sprintf("'%s datastore members' lists what there is", a.Name), fmt.Errorf("no member has the name or ID %q", who))
}

func (a *app) defragCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "defrag",
		Short: "Give the datastore's free space back to the disks",
		Long: `Forget the history of the datastore and give the space that this frees back to the
disk, one member after the other. A member answers nothing meanwhile; agents go on.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withCluster(c.Context(), a.defragment)
		},
	}
}

func (a *app) defragment(ctx context.Context, c cluster) error {
	if err := c.Compact(ctx); err != nil {
		return a.describe("update", "datastore", err)
	}
	members, err := c.Members(ctx)
	if err != nil {
		return a.describe("get", "members", err)
	}
	var failed []error
	for _, m := range members {
		if m.Err != nil {
			failed = append(failed, fmt.Errorf("member %s: %w", m.Name, m.Err))
			continue
		}
		if err := c.Defragment(ctx, m); err != nil {
			failed = append(failed, err)
			continue
		}
		after, err := c.Members(ctx)
		for _, n := range after {
			if err == nil && n.ID == m.ID && n.Err == nil {
				fmt.Fprintf(a.Stdout, "Member %s: %s before, %s now.\n", m.Name, bytesText(m.Size), bytesText(n.Size))
			}
		}
	}
	if len(failed) > 0 {
		return exit.New(classify(failed[0]), "repeat the command when all members answer", errors.Join(failed...))
	}
	return nil
}

func (a *app) disarmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "disarm",
		Short: "End the datastore's alarms after their cause is gone",
		Long: `End the datastore's alarms. With the alarm NOSPACE etcd refuses writes until somebody
has given it space (on the disk, or by defrag) and ended the alarm. Where a host keeps
the datastore itself its agent does that by itself.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withCluster(c.Context(), func(ctx context.Context, cl cluster) error {
				n, err := cl.Disarm(ctx)
				if err != nil {
					return a.describe("update", "datastore", err)
				}
				fmt.Fprintf(a.Stdout, "Ended %d alarm(s).\n", n)
				return nil
			})
		},
	}
}
