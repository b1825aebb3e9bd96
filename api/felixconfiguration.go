package api

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// FelixConfiguration holds the node agent's parameters: for the cluster (name
// "default"), for one node (name "node.<node>"), or, with a nodeSelector, for
// the nodes it selects.
type FelixConfiguration struct {
	Resource
	Spec FelixConfigurationSpec `json:"spec"`
}

// FelixConfigurationSpec lists the parameters by their v3 names, in the order in
// which Calico stores them (spec/calico.md §5.7). A nil field was not set and the
// next source of configuration decides. Durations are spans; MTUs are bytes;
// ports are TCP or UDP ports. Parameters that the agent does not act on are kept
// so that Calico's own tools can use them.
type FelixConfigurationSpec struct {
	NodeSelector                       *string               `json:"nodeSelector,omitempty"`
	UseInternalDataplaneDriver         *bool                 `json:"useInternalDataplaneDriver,omitempty"`
	DataplaneDriver                    *string               `json:"dataplaneDriver,omitempty"`
	DataplaneWatchdogTimeout           *Duration             `json:"dataplaneWatchdogTimeout,omitempty"`
	IPv6Support                        *bool                 `json:"ipv6Support,omitempty"`
	RouteRefreshInterval               *Duration             `json:"routeRefreshInterval,omitempty"`
	InterfaceRefreshInterval           *Duration             `json:"interfaceRefreshInterval,omitempty"`
	IptablesRefreshInterval            *Duration             `json:"iptablesRefreshInterval,omitempty"`
	IptablesPostWriteCheckInterval     *Duration             `json:"iptablesPostWriteCheckInterval,omitempty"`
	IptablesLockFilePath               *string               `json:"iptablesLockFilePath,omitempty"`
	IptablesLockTimeout                *Duration             `json:"iptablesLockTimeout,omitempty"`
	IptablesLockProbeInterval          *Duration             `json:"iptablesLockProbeInterval,omitempty"`
	FeatureDetectOverride              *string               `json:"featureDetectOverride,omitempty"`
	FeatureGates                       *string               `json:"featureGates,omitempty"`
	IpsetsRefreshInterval              *Duration             `json:"ipsetsRefreshInterval,omitempty"`
	MaxIpsetSize                       *int                  `json:"maxIpsetSize,omitempty"`
	IptablesBackend                    *string               `json:"iptablesBackend,omitempty"`
	XDPRefreshInterval                 *Duration             `json:"xdpRefreshInterval,omitempty"`
	NetlinkTimeout                     *Duration             `json:"netlinkTimeout,omitempty"`
	MetadataAddr                       *string               `json:"metadataAddr,omitempty"`
	MetadataPort                       *int                  `json:"metadataPort,omitempty"`
	OpenstackRegion                    *string               `json:"openstackRegion,omitempty"`
	InterfacePrefix                    *string               `json:"interfacePrefix,omitempty"`
	InterfaceExclude                   *string               `json:"interfaceExclude,omitempty"`
	ChainInsertMode                    *string               `json:"chainInsertMode,omitempty"`
	DefaultEndpointToHostAction        *string               `json:"defaultEndpointToHostAction,omitempty"` // Drop, Accept or Return
	IptablesFilterAllowAction          *string               `json:"iptablesFilterAllowAction,omitempty"`
	IptablesMangleAllowAction          *string               `json:"iptablesMangleAllowAction,omitempty"`
	IptablesFilterDenyAction           *string               `json:"iptablesFilterDenyAction,omitempty"`
	LogPrefix                          *string               `json:"logPrefix,omitempty"`
	LogActionRateLimit                 *string               `json:"logActionRateLimit,omitempty"`
	LogActionRateLimitBurst            *int                  `json:"logActionRateLimitBurst,omitempty"`
	LogFilePath                        *string               `json:"logFilePath,omitempty"`
	LogSeverityFile                    *string               `json:"logSeverityFile,omitempty"`
	LogSeverityScreen                  *string               `json:"logSeverityScreen,omitempty"`
	LogSeveritySys                     *string               `json:"logSeveritySys,omitempty"`
	LogDebugFilenameRegex              *string               `json:"logDebugFilenameRegex,omitempty"`
	IPIPEnabled                        *bool                 `json:"ipipEnabled,omitempty"`
	IPIPMTU                            *int                  `json:"ipipMTU,omitempty"`
	VXLANEnabled                       *bool                 `json:"vxlanEnabled,omitempty"`
	VXLANMTU                           *int                  `json:"vxlanMTU,omitempty"`
	VXLANMTUV6                         *int                  `json:"vxlanMTUV6,omitempty"`
	VXLANPort                          *int                  `json:"vxlanPort,omitempty"`
	VXLANVNI                           *int                  `json:"vxlanVNI,omitempty"`
	AllowVXLANPacketsFromWorkloads     *bool                 `json:"allowVXLANPacketsFromWorkloads,omitempty"`
	AllowIPIPPacketsFromWorkloads      *bool                 `json:"allowIPIPPacketsFromWorkloads,omitempty"`
	ReportingInterval                  *Duration             `json:"reportingInterval,omitempty"`
	ReportingTTL                       *Duration             `json:"reportingTTL,omitempty"`
	EndpointReportingEnabled           *bool                 `json:"endpointReportingEnabled,omitempty"`
	EndpointReportingDelay             *Duration             `json:"endpointReportingDelay,omitempty"`
	EndpointStatusPathPrefix           *string               `json:"endpointStatusPathPrefix,omitempty"`
	IptablesMarkMask                   *uint32               `json:"iptablesMarkMask,omitempty"`
	DisableConntrackInvalidCheck       *bool                 `json:"disableConntrackInvalidCheck,omitempty"`
	HealthEnabled                      *bool                 `json:"healthEnabled,omitempty"`
	HealthHost                         *string               `json:"healthHost,omitempty"`
	HealthPort                         *int                  `json:"healthPort,omitempty"`
	HealthTimeoutOverrides             []HealthTimeout       `json:"healthTimeoutOverrides,omitzero"`
	PrometheusMetricsEnabled           *bool                 `json:"prometheusMetricsEnabled,omitempty"`
	PrometheusMetricsHost              *string               `json:"prometheusMetricsHost,omitempty"`
	PrometheusMetricsPort              *int                  `json:"prometheusMetricsPort,omitempty"`
	PrometheusMetricsCAFile            *string               `json:"prometheusMetricsCAFile,omitempty"`
	PrometheusMetricsCertFile          *string               `json:"prometheusMetricsCertFile,omitempty"`
	PrometheusMetricsKeyFile           *string               `json:"prometheusMetricsKeyFile,omitempty"`
	PrometheusMetricsClientAuth        *string               `json:"prometheusMetricsClientAuth,omitempty"`
	PrometheusGoMetricsEnabled         *bool                 `json:"prometheusGoMetricsEnabled,omitempty"`
	PrometheusProcessMetricsEnabled    *bool                 `json:"prometheusProcessMetricsEnabled,omitempty"`
	PrometheusWireGuardMetricsEnabled  *bool                 `json:"prometheusWireGuardMetricsEnabled,omitempty"`
	FailsafeInboundHostPorts           []ProtoPort           `json:"failsafeInboundHostPorts,omitzero"` // empty: none; nil: the default list
	FailsafeOutboundHostPorts          []ProtoPort           `json:"failsafeOutboundHostPorts,omitzero"`
	KubeNodePortRanges                 []IntOrString         `json:"kubeNodePortRanges,omitzero"`
	PolicySyncPathPrefix               *string               `json:"policySyncPathPrefix,omitempty"`
	UsageReportingEnabled              *bool                 `json:"usageReportingEnabled,omitempty"`
	UsageReportingInitialDelay         *Duration             `json:"usageReportingInitialDelay,omitempty"`
	UsageReportingInterval             *Duration             `json:"usageReportingInterval,omitempty"`
	NATPortRange                       *IntOrString          `json:"natPortRange,omitempty"`
	NATOutgoingAddress                 *string               `json:"natOutgoingAddress,omitempty"`
	NATOutgoingExclusions              *string               `json:"natOutgoingExclusions,omitempty"` // IPPoolsOnly or IPPoolsAndHostIPs
	DeviceRouteSourceAddress           *string               `json:"deviceRouteSourceAddress,omitempty"`
	DeviceRouteSourceAddressIPv6       *string               `json:"deviceRouteSourceAddressIPv6,omitempty"`
	DeviceRouteProtocol                *int                  `json:"deviceRouteProtocol,omitempty"`
	RemoveExternalRoutes               *bool                 `json:"removeExternalRoutes,omitempty"`
	ProgramClusterRoutes               *string               `json:"programClusterRoutes,omitempty"`
	IPForwarding                       *string               `json:"ipForwarding,omitempty"` // Enabled or Disabled
	IPv4NormalRoutePriority            *int                  `json:"ipv4NormalRoutePriority,omitempty"`
	IPv4ElevatedRoutePriority          *int                  `json:"ipv4ElevatedRoutePriority,omitempty"`
	IPv6NormalRoutePriority            *int                  `json:"ipv6NormalRoutePriority,omitempty"`
	IPv6ElevatedRoutePriority          *int                  `json:"ipv6ElevatedRoutePriority,omitempty"`
	ExternalNodesList                  []string              `json:"externalNodesList,omitzero"`
	DebugMemoryProfilePath             *string               `json:"debugMemoryProfilePath,omitempty"`
	DebugDisableLogDropping            *bool                 `json:"debugDisableLogDropping,omitempty"`
	DebugSimulateCalcGraphHangAfter    *Duration             `json:"debugSimulateCalcGraphHangAfter,omitempty"`
	DebugSimulateDataplaneHangAfter    *Duration             `json:"debugSimulateDataplaneHangAfter,omitempty"`
	DebugSimulateDataplaneApplyDelay   *Duration             `json:"debugSimulateDataplaneApplyDelay,omitempty"`
	DebugHost                          *string               `json:"debugHost,omitempty"`
	DebugPort                          *int                  `json:"debugPort,omitempty"`
	IptablesNATOutgoingInterfaceFilter *string               `json:"iptablesNATOutgoingInterfaceFilter,omitempty"`
	SidecarAccelerationEnabled         *bool                 `json:"sidecarAccelerationEnabled,omitempty"`
	XDPEnabled                         *bool                 `json:"xdpEnabled,omitempty"`
	GenericXDPEnabled                  *bool                 `json:"genericXDPEnabled,omitempty"`
	NftablesMode                       *string               `json:"nftablesMode,omitempty"` // Auto, Enabled or Disabled
	NftablesFlowTableOffload           *string               `json:"nftablesFlowTableOffload,omitempty"`
	NftablesRefreshInterval            *Duration             `json:"nftablesRefreshInterval,omitempty"`
	NftablesFilterAllowAction          *string               `json:"nftablesFilterAllowAction,omitempty"`
	NftablesMangleAllowAction          *string               `json:"nftablesMangleAllowAction,omitempty"`
	NftablesFilterDenyAction           *string               `json:"nftablesFilterDenyAction,omitempty"`
	NftablesMarkMask                   *uint32               `json:"nftablesMarkMask,omitempty"`
	BPFEnabled                         *bool                 `json:"bpfEnabled,omitempty"`
	BPFDisableUnprivileged             *bool                 `json:"bpfDisableUnprivileged,omitempty"`
	BPFLogLevel                        *string               `json:"bpfLogLevel,omitempty"`
	BPFConntrackLogLevel               *string               `json:"bpfConntrackLogLevel,omitempty"`
	BPFConntrackMode                   *string               `json:"bpfConntrackMode,omitempty"` // its name up to v3.31
	BPFConntrackTimeouts               *BPFConntrackTimeouts `json:"bpfConntrackTimeouts,omitempty"`
	BPFLogFilters                      map[string]string     `json:"bpfLogFilters,omitempty"`
	BPFCTLBLogFilter                   *string               `json:"bpfCTLBLogFilter,omitempty"`
	BPFConntrackCleanupMode            *string               `json:"bpfConntrackCleanupMode,omitempty"`
	BPFDataIfacePattern                *string               `json:"bpfDataIfacePattern,omitempty"`
	BPFL3IfacePattern                  *string               `json:"bpfL3IfacePattern,omitempty"`
	BPFConnectTimeLoadBalancingEnabled *bool                 `json:"bpfConnectTimeLoadBalancingEnabled,omitempty"`
	BPFConnectTimeLoadBalancing        *string               `json:"bpfConnectTimeLoadBalancing,omitempty"`
	BPFHostNetworkedNATWithoutCTLB     *string               `json:"bpfHostNetworkedNATWithoutCTLB,omitempty"`
	BPFMaglevMaxEndpointsPerService    *int                  `json:"bpfMaglevMaxEndpointsPerService,omitempty"`
	BPFMaglevMaxServices               *int                  `json:"bpfMaglevMaxServices,omitempty"`
	BPFExternalServiceMode             *string               `json:"bpfExternalServiceMode,omitempty"`
	BPFDSROptoutCIDRs                  []string              `json:"bpfDSROptoutCIDRs,omitzero"`
	BPFExtToServiceConnmark            *int                  `json:"bpfExtToServiceConnmark,omitempty"`
	BPFKubeProxyIptablesCleanupEnabled *bool                 `json:"bpfKubeProxyIptablesCleanupEnabled,omitempty"`
	BPFKubeProxyMinSyncPeriod          *Duration             `json:"bpfKubeProxyMinSyncPeriod,omitempty"`
	BPFKubeProxyEndpointSlicesEnabled  *bool                 `json:"bpfKubeProxyEndpointSlicesEnabled,omitempty"`
	BPFKubeProxyHealthzPort            *int                  `json:"bpfKubeProxyHealthzPort,omitempty"`
	BPFPSNATPorts                      *IntOrString          `json:"bpfPSNATPorts,omitempty"`
	BPFMapSizeNATFrontend              *int                  `json:"bpfMapSizeNATFrontend,omitempty"`
	BPFMapSizeNATBackend               *int                  `json:"bpfMapSizeNATBackend,omitempty"`
	BPFMapSizeNATAffinity              *int                  `json:"bpfMapSizeNATAffinity,omitempty"`
	BPFMapSizeRoute                    *int                  `json:"bpfMapSizeRoute,omitempty"`
	BPFMapSizeConntrack                *int                  `json:"bpfMapSizeConntrack,omitempty"`
	BPFMapSizePerCPUConntrack          *int                  `json:"bpfMapSizePerCpuConntrack,omitempty"`
	BPFMapSizeConntrackScaling         *string               `json:"bpfMapSizeConntrackScaling,omitempty"`
	BPFMapSizeConntrackCleanupQueue    *int                  `json:"bpfMapSizeConntrackCleanupQueue,omitempty"`
	BPFMapSizeIPSets                   *int                  `json:"bpfMapSizeIPSets,omitempty"`
	BPFMapSizeIfState                  *int                  `json:"bpfMapSizeIfState,omitempty"`
	BPFHostConntrackBypass             *bool                 `json:"bpfHostConntrackBypass,omitempty"`
	BPFJITHardening                    *string               `json:"bpfJITHardening,omitempty"`
	BPFEnforceRPF                      *string               `json:"bpfEnforceRPF,omitempty"`
	BPFPolicyDebugEnabled              *bool                 `json:"bpfPolicyDebugEnabled,omitempty"`
	BPFForceTrackPacketsFromIfaces     []string              `json:"bpfForceTrackPacketsFromIfaces,omitzero"`
	BPFDisableGROForIfaces             *string               `json:"bpfDisableGROForIfaces,omitempty"`
	BPFExcludeCIDRsFromNAT             []string              `json:"bpfExcludeCIDRsFromNAT,omitzero"`
	BPFExportBufferSizeMB              *int                  `json:"bpfExportBufferSizeMB,omitempty"`
	CgroupV2Path                       *string               `json:"cgroupV2Path,omitempty"`
	IstioAmbientMode                   *string               `json:"istioAmbientMode,omitempty"`
	IstioDSCPMark                      *IntOrString          `json:"istioDSCPMark,omitempty"`
	KubeMasqueradeBit                  *int                  `json:"kubeMasqueradeBit,omitempty"`
	FlowLogsPolicyEvaluationMode       *string               `json:"flowLogsPolicyEvaluationMode,omitempty"`
	BPFRedirectToPeer                  *string               `json:"bpfRedirectToPeer,omitempty"`
	BPFAttachType                      *string               `json:"bpfAttachType,omitempty"`
	FlowLogsFlushInterval              *Duration             `json:"flowLogsFlushInterval,omitempty"`
	FlowLogsCollectorDebugTrace        *bool                 `json:"flowLogsCollectorDebugTrace,omitempty"`
	FlowLogsGoldmaneServer             *string               `json:"flowLogsGoldmaneServer,omitempty"`
	FlowLogsLocalReporter              *string               `json:"flowLogsLocalReporter,omitempty"`
	BPFProfiling                       *string               `json:"bpfProfiling,omitempty"`
	RouteSource                        *string               `json:"routeSource,omitempty"` // CalicoIPAM or WorkloadIPs
	RouteTableRanges                   []RouteTableRangeIDs  `json:"routeTableRanges,omitzero"`
	RouteTableRange                    *RouteTableRange      `json:"routeTableRange,omitempty"`
	RouteSyncDisabled                  *bool                 `json:"routeSyncDisabled,omitempty"`
	WireguardEnabled                   *bool                 `json:"wireguardEnabled,omitempty"`
	WireguardEnabledV6                 *bool                 `json:"wireguardEnabledV6,omitempty"`
	WireguardThreadingEnabled          *bool                 `json:"wireguardThreadingEnabled,omitempty"`
	WireguardListeningPort             *int                  `json:"wireguardListeningPort,omitempty"`
	WireguardListeningPortV6           *int                  `json:"wireguardListeningPortV6,omitempty"`
	WireguardRoutingRulePriority       *int                  `json:"wireguardRoutingRulePriority,omitempty"`
	WireguardInterfaceName             *string               `json:"wireguardInterfaceName,omitempty"`
	WireguardInterfaceNameV6           *string               `json:"wireguardInterfaceNameV6,omitempty"`
	WireguardMTU                       *int                  `json:"wireguardMTU,omitempty"`
	WireguardMTUV6                     *int                  `json:"wireguardMTUV6,omitempty"`
	WireguardHostEncryptionEnabled     *bool                 `json:"wireguardHostEncryptionEnabled,omitempty"`
	WireguardKeepAlive                 *Duration             `json:"wireguardKeepAlive,omitempty"`
	AWSSrcDstCheck                     *string               `json:"awsSrcDstCheck,omitempty"`         // DoNothing, Enable or Disable
	ServiceLoopPrevention              *string               `json:"serviceLoopPrevention,omitempty"`  // Drop, Reject or Disabled
	WorkloadSourceSpoofing             *string               `json:"workloadSourceSpoofing,omitempty"` // Disabled or Any
	MTUIfacePattern                    *string               `json:"mtuIfacePattern,omitempty"`
	FloatingIPs                        *string               `json:"floatingIPs,omitempty"` // Enabled or Disabled
	WindowsManageFirewallRules         *string               `json:"windowsManageFirewallRules,omitempty"`
	WindowsNetworkName                 *string               `json:"windowsNetworkName,omitempty"`
	GoGCThreshold                      *int                  `json:"goGCThreshold,omitempty"`
	GoMemoryLimitMB                    *int                  `json:"goMemoryLimitMB,omitempty"`
	GoMaxProcs                         *int                  `json:"goMaxProcs,omitempty"`
	RequireMTUFile                     *bool                 `json:"requireMTUFile,omitempty"`
	ServiceLoadBalancerMode            *string               `json:"serviceLoadBalancerMode,omitempty"`
}

// ProtoPort is one failsafe port: protocol, port and the CIDR of the far end
// (empty: any).
type ProtoPort struct {
	Protocol string `json:"protocol,omitempty"`
	Port     uint16 `json:"port"`
	Net      string `json:"net,omitempty"`
}

// HealthTimeout overrides the liveness timeout of one component.
type HealthTimeout struct {
	Name    string   `json:"name"`
	Timeout Duration `json:"timeout"`
}

// RouteTableRange is the old spelling of a range of routing table numbers.
type RouteTableRange struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// RouteTableRangeIDs is a range of routing table numbers, both ends included.
type RouteTableRangeIDs struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// BPFConntrackTimeouts are the time-outs of the BPF connection table.
type BPFConntrackTimeouts struct {
	CreationGracePeriod *string `json:"creationGracePeriod,omitempty"`
	TCPSynSent          *string `json:"tcpSynSent,omitempty"`
	TCPEstablished      *string `json:"tcpEstablished,omitempty"`
	TCPFinsSeen         *string `json:"tcpFinsSeen,omitempty"`
	TCPResetSeen        *string `json:"tcpResetSeen,omitempty"`
	UDPTimeout          *string `json:"udpTimeout,omitempty"`
	GenericTimeout      *string `json:"genericTimeout,omitempty"`
	ICMPTimeout         *string `json:"icmpTimeout,omitempty"`
}

// Default fills what Calico's CRD fills (spec/calico.md §1.4).
func (f *FelixConfiguration) Default() {
	f.setType("FelixConfiguration")
	for _, d := range []struct {
		field **string
		value string
	}{
		{&f.Spec.NftablesMode, "Auto"},
		{&f.Spec.NftablesFlowTableOffload, "Disabled"},
		{&f.Spec.BPFLogLevel, ""},
		{&f.Spec.BPFConnectTimeLoadBalancing, "TCP"},
		{&f.Spec.BPFHostNetworkedNATWithoutCTLB, "Enabled"},
		{&f.Spec.FloatingIPs, "Disabled"},
	} {
		if *d.field == nil {
			*d.field = &d.value
		}
	}
}

// servedParameters names, in their v3 spelling, the parameters that the agent
// acts on.
func servedParameters() []string {
	return []string{
		"allowIPIPPacketsFromWorkloads", "allowVXLANPacketsFromWorkloads", "defaultEndpointToHostAction", "disableConntrackInvalidCheck",
		"externalNodesList", "failsafeInboundHostPorts", "failsafeOutboundHostPorts", "featureDetectOverride", "ipipMTU",
		"iptablesFilterDenyAction", "iptablesNATOutgoingInterfaceFilter", "logActionRateLimit", "logPrefix", "mtuIfacePattern", "natOutgoingAddress",
		"natOutgoingExclusions", "natPortRange", "nftablesFilterDenyAction", "programClusterRoutes",
		"serviceLoopPrevention", "vxlanMTU", "vxlanMTUV6", "vxlanPort", "vxlanVNI", "workloadSourceSpoofing",
	}
}

// Unserved names, in their v3 spelling and the order of the struct, the
// parameters that are set to something else than their default and that the
// agent does not act on.
func (f *FelixConfiguration) Unserved() []string {
	var plain FelixConfiguration
	plain.Default()
	set, usual := reflect.ValueOf(f.Spec), reflect.ValueOf(plain.Spec)
	var names []string
	for i := range set.NumField() {
		v := set.Field(i)
		if v.IsNil() || reflect.DeepEqual(v.Interface(), usual.Field(i).Interface()) {
			continue
		}
		name, _, _ := strings.Cut(set.Type().Field(i).Tag.Get("json"), ",")
		if !slices.Contains(servedParameters(), name) {
			names = append(names, name)
		}
	}
	return names
}

func felixConfigurationKind() Kind {
	return Kind{
		Name: "FelixConfiguration", Plural: "felixconfigurations", Aliases: []string{"felixconfig", "felixconfigs"},
		New:     func() Object { return &FelixConfiguration{} },
		Columns: []Column{nameColumn()},
	}
}

// Validate checks the parameters that have a fixed set or range of values.
func (f *FelixConfiguration) Validate() error {
	c := newChecker(&f.Resource, "FelixConfiguration", false)
	s := &f.Spec
	if s.NodeSelector != nil {
		c.selector("Spec.NodeSelector", *s.NodeSelector, false)
	}
	c.felixEnums(s)
	c.felixNumbers(s)
	c.felixDurations(s)
	c.felixLists(s)
	c.regexp("Spec.MTUIfacePattern", s.MTUIfacePattern)
	c.regexp("Spec.BPFDataIfacePattern", s.BPFDataIfacePattern)
	c.regexp("Spec.BPFL3IfacePattern", s.BPFL3IfacePattern)
	if s.NATPortRange != nil && !validPort(*s.NATPortRange) {
		c.add("Spec.NATPortRange", clip(s.NATPortRange.String()), "must be a port or a range min:max")
	}
	if s.InterfacePrefix != nil {
		for p := range strings.SplitSeq(*s.InterfacePrefix, ",") {
			if !ValidInterfaceName(p) {
				c.add("Spec.InterfacePrefix", clip(*s.InterfacePrefix), interfaceReason)
			}
		}
	}
	return c.Err()
}

func (c *checker) felixDurations(s *FelixConfigurationSpec) {
	for _, d := range []struct {
		path  string
		value *Duration
	}{
		{"Spec.ReportingInterval", s.ReportingInterval},
		{"Spec.ReportingTTL", s.ReportingTTL},
		{"Spec.RouteRefreshInterval", s.RouteRefreshInterval},
		{"Spec.InterfaceRefreshInterval", s.InterfaceRefreshInterval},
		{"Spec.NftablesRefreshInterval", s.NftablesRefreshInterval},
		{"Spec.IptablesRefreshInterval", s.IptablesRefreshInterval},
		{"Spec.IpsetsRefreshInterval", s.IpsetsRefreshInterval},
		{"Spec.EndpointReportingDelay", s.EndpointReportingDelay},
		{"Spec.NetlinkTimeout", s.NetlinkTimeout},
		{"Spec.DataplaneWatchdogTimeout", s.DataplaneWatchdogTimeout},
	} {
		c.notNegative(d.path, d.value)
	}
}

func (c *checker) felixLists(s *FelixConfigurationSpec) {
	c.failsafePorts("Spec.FailsafeInboundHostPorts", s.FailsafeInboundHostPorts)
	c.failsafePorts("Spec.FailsafeOutboundHostPorts", s.FailsafeOutboundHostPorts)
	for i, n := range s.ExternalNodesList {
		c.net(index("Spec.ExternalNodesList", i), n)
	}
	for i, r := range s.RouteTableRanges {
		if r.Min < 1 || r.Max < r.Min {
			c.add(index("Spec.RouteTableRanges", i), fmt.Sprintf("%d-%d", r.Min, r.Max), "must be two table numbers, the smaller first")
		}
	}
	for i, p := range s.KubeNodePortRanges {
		if !validPort(p) {
			c.add(index("Spec.KubeNodePortRanges", i), clip(p.String()), "must be a port or a range min:max")
		}
	}
}

func (c *checker) felixEnums(s *FelixConfigurationSpec) {
	severities := []string{"Trace", "Debug", "Info", "Warning", "Error", "Fatal", "None"}
	onOff := []string{"Enabled", "Disabled"}
	for _, e := range []struct {
		path    string
		value   *string
		allowed []string
	}{
		{"Spec.LogSeverityScreen", s.LogSeverityScreen, severities},
		{"Spec.LogSeverityFile", s.LogSeverityFile, severities},
		{"Spec.LogSeveritySys", s.LogSeveritySys, severities},
		{"Spec.DefaultEndpointToHostAction", s.DefaultEndpointToHostAction, []string{"Drop", "Accept", "Return", "DROP", "ACCEPT", "RETURN"}},
		{"Spec.WorkloadSourceSpoofing", s.WorkloadSourceSpoofing, []string{"Disabled", "Any"}},
		{"Spec.IptablesBackend", s.IptablesBackend, []string{"Auto", "Legacy", "NFT", "auto", "legacy", "nft"}},
		{"Spec.IptablesFilterDenyAction", s.IptablesFilterDenyAction, []string{"Drop", "Reject", "DROP", "REJECT"}},
		{"Spec.IptablesFilterAllowAction", s.IptablesFilterAllowAction, []string{"Accept", "Return", "ACCEPT", "RETURN"}},
		{"Spec.IptablesMangleAllowAction", s.IptablesMangleAllowAction, []string{"Accept", "Return", "ACCEPT", "RETURN"}},
		{"Spec.NftablesFilterDenyAction", s.NftablesFilterDenyAction, []string{"Drop", "Reject", "DROP", "REJECT"}},
		{"Spec.NftablesFilterAllowAction", s.NftablesFilterAllowAction, []string{"Accept", "Return", "ACCEPT", "RETURN"}},
		{"Spec.NftablesMangleAllowAction", s.NftablesMangleAllowAction, []string{"Accept", "Return", "ACCEPT", "RETURN"}},
		{"Spec.NftablesMode", s.NftablesMode, []string{"Auto", "Enabled", "Disabled"}},
		{"Spec.ChainInsertMode", s.ChainInsertMode, []string{"insert", "append", "Insert", "Append"}},
		{"Spec.IPForwarding", s.IPForwarding, onOff},
		{"Spec.FloatingIPs", s.FloatingIPs, onOff},
		{"Spec.RouteSource", s.RouteSource, []string{"CalicoIPAM", "WorkloadIPs"}},
		{"Spec.NATOutgoingExclusions", s.NATOutgoingExclusions, []string{"IPPoolsOnly", "IPPoolsAndHostIPs"}},
		{"Spec.ServiceLoopPrevention", s.ServiceLoopPrevention, []string{"Drop", "Reject", "Disabled"}},
		{"Spec.ProgramClusterRoutes", s.ProgramClusterRoutes, []string{"Enabled", "Disabled", "EnabledIPIPOnly"}},
		{"Spec.AWSSrcDstCheck", s.AWSSrcDstCheck, []string{"DoNothing", "Enable", "Disable"}},
	} {
		c.oneOfPtr(e.path, e.value, e.allowed...)
	}
}

func (c *checker) felixNumbers(s *FelixConfigurationSpec) {
	for _, n := range []struct {
		path      string
		value     *int
		low, high int
	}{
		{"Spec.HealthPort", s.HealthPort, 0, 65535},
		{"Spec.PrometheusMetricsPort", s.PrometheusMetricsPort, 0, 65535},
		{"Spec.DebugPort", s.DebugPort, 0, 65535},
		{"Spec.VXLANPort", s.VXLANPort, 1, 65535},
		{"Spec.VXLANVNI", s.VXLANVNI, 1, 1<<24 - 1},
		{"Spec.IPIPMTU", s.IPIPMTU, 0, 65535},
		{"Spec.VXLANMTU", s.VXLANMTU, 0, 65535},
		{"Spec.VXLANMTUV6", s.VXLANMTUV6, 0, 65535},
		{"Spec.WireguardMTU", s.WireguardMTU, 0, 65535},
		{"Spec.WireguardMTUV6", s.WireguardMTUV6, 0, 65535},
		{"Spec.WireguardListeningPort", s.WireguardListeningPort, 1, 65535},
		{"Spec.WireguardListeningPortV6", s.WireguardListeningPortV6, 1, 65535},
		{"Spec.WireguardRoutingRulePriority", s.WireguardRoutingRulePriority, 1, 32765},
		{"Spec.MetadataPort", s.MetadataPort, 0, 65535},
		{"Spec.DeviceRouteProtocol", s.DeviceRouteProtocol, 0, 255},
		{"Spec.MaxIpsetSize", s.MaxIpsetSize, 1, 1 << 30},
		{"Spec.IPv4NormalRoutePriority", s.IPv4NormalRoutePriority, 1, 1<<31 - 1},
		{"Spec.IPv4ElevatedRoutePriority", s.IPv4ElevatedRoutePriority, 1, 1<<31 - 1},
		{"Spec.IPv6NormalRoutePriority", s.IPv6NormalRoutePriority, 1, 1<<31 - 1},
		{"Spec.IPv6ElevatedRoutePriority", s.IPv6ElevatedRoutePriority, 1, 1<<31 - 1},
	} {
		c.withinPtr(n.path, n.value, n.low, n.high)
	}
}

func (c *checker) failsafePorts(path string, ports []ProtoPort) {
	for i, p := range ports {
		c.oneOf(index(path, i)+".Protocol", p.Protocol, "tcp", "udp", "sctp", "TCP", "UDP", "SCTP")
		if p.Net != "" {
			c.net(index(path, i)+".Net", p.Net)
		}
	}
}

// ServesParameter says whether the agent acts on a parameter, by its v3 name.
func ServesParameter(name string) bool { return slices.Contains(servedParameters(), name) }
