package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
)

// persistenceField is a member of the stored configuration that only KubeVirt's
// guests need.
const persistenceField = "kubeVirtVMAddressPersistence"

type ipamConfigureFlags struct {
	strict, blocks, persistence, cooldown string
}

func (a *app) ipamConfigureCommand() *cobra.Command {
	var f ipamConfigureFlags
	c := &cobra.Command{
		Use:   "configure",
		Short: "Change the configuration of address management",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			change, lines, err := f.change()
			if err != nil {
				return exit.New(exit.Usage, "", err)
			}
			return a.configure(c.Context(), change, lines)
		},
	}
	c.Flags().StringVar(&f.strict, "strictaffinity", "", "true: a host never borrows addresses of another host's blocks; false: it may")
	c.Flags().StringVar(&f.blocks, "max-blocks-per-host", "", "how many blocks a host may own; 0 for no limit of its own")
	c.Flags().StringVar(&f.persistence, "kubevirt-ip-persistence", "", "Enabled or Disabled: whether a KubeVirt guest keeps its address")
	c.Flags().StringVar(&f.cooldown, "ip-cooldown-seconds", "", "how long a released address is not given out again")
	return c
}

// change reads the flags. It returns what to do to the configuration and the
// lines that say so.
func (f ipamConfigureFlags) change() (func(c *api.IPAMConfig), []string, error) {
	var changes []func(c *api.IPAMConfig)
	var lines []string
	set := func(name, value string, do func(c *api.IPAMConfig)) {
		changes = append(changes, do)
		lines = append(lines, fmt.Sprintf("Successfully set %s to: %s", name, value))
	}
	if f.strict != "" {
		on, err := strconv.ParseBool(f.strict)
		if err != nil {
			return nil, nil, errors.New("invalid value. Use true or false to set strictaffinity")
		}
		set("StrictAffinity", strconv.FormatBool(on), func(c *api.IPAMConfig) { c.StrictAffinity = on })
	}
	if f.blocks != "" {
		n, err := strconv.ParseInt(f.blocks, 10, 32)
		if err != nil {
			return nil, nil, errors.New("invalid value for maxblockhost. Use a valid number")
		}
		set("MaxBlocksPerHost", strconv.Itoa(int(n)), func(c *api.IPAMConfig) { c.MaxBlocksPerHost = int(n) })
	}
	switch f.persistence {
	case "":
	case "Enabled", "Disabled":
		set("KubeVirtVMAddressPersistence", f.persistence, func(c *api.IPAMConfig) {
			if c.Extra == nil {
				c.Extra = map[string]json.RawMessage{}
			}
			c.Extra[persistenceField] = json.RawMessage(strconv.Quote(f.persistence))
		})
	default:
		return nil, nil, errors.New("invalid value for --kubevirt-ip-persistence. Use Enabled or Disabled")
	}
	if f.cooldown != "" {
		n, err := strconv.ParseInt(f.cooldown, 10, 32)
		if err != nil {
			return nil, nil, errors.New("invalid value for --ip-cooldown-seconds. Use a valid number")
		}
		set("IPCooldownSeconds", strconv.Itoa(int(n)), func(c *api.IPAMConfig) { c.IPCooldownSeconds = int(n) })
	}
	if len(changes) == 0 {
		return nil, nil, errors.New("at least one configuration option must be specified")
	}
	return func(c *api.IPAMConfig) {
		for _, do := range changes {
			do(c)
		}
	}, lines, nil
}

func (a *app) configure(ctx context.Context, change func(c *api.IPAMConfig), lines []string) error {
	store, _, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	key := datastore.Key{Kind: datastore.KindIPAMConfig, Name: "default"}
	err = datastore.Update(ctx, store, key, func(cur *api.IPAMConfig) (*api.IPAMConfig, error) {
		if cur == nil {
			fresh := api.DefaultIPAMConfig()
			cur = &fresh
		}
		change(cur)
		return cur, cur.Validate()
	})
	if err != nil {
		return a.describe("update", "IPAMConfig", err)
	}
	for _, line := range lines {
		fmt.Fprintln(a.Stdout, line)
	}
	return nil
}
