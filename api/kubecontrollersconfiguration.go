package api

// KubeControllersConfiguration (name "default") holds the settings of the
// Kubernetes controllers.
type KubeControllersConfiguration struct {
	Resource
	Spec   KubeControllersConfigurationSpec    `json:"spec"`
	Status *KubeControllersConfigurationStatus `json:"status,omitempty"`
}

// KubeControllersConfigurationSpec is the specification (spec/calico.md §1.4).
type KubeControllersConfigurationSpec struct {
	LogSeverityScreen      string            `json:"logSeverityScreen,omitempty"`      // "Info", ...
	HealthChecks           string            `json:"healthChecks,omitempty"`           // "Enabled" or "Disabled"
	EtcdV3CompactionPeriod *Duration         `json:"etcdV3CompactionPeriod,omitempty"` // 0: never
	PrometheusMetricsPort  *int              `json:"prometheusMetricsPort,omitempty"`  // 0: off
	Controllers            ControllersConfig `json:"controllers"`                      // nil: not run
	DebugProfilePort       *int              `json:"debugProfilePort,omitempty"`       // nil: none
}

// ControllersConfig names the controllers that run; nil ones do not.
type ControllersConfig struct {
	Node             *NodeControllerConfig         `json:"node,omitempty"`
	Policy           *ReconcilerConfig             `json:"policy,omitempty"`
	WorkloadEndpoint *ReconcilerConfig             `json:"workloadEndpoint,omitempty"`
	ServiceAccount   *ReconcilerConfig             `json:"serviceAccount,omitempty"`
	Namespace        *ReconcilerConfig             `json:"namespace,omitempty"`
	LoadBalancer     *LoadBalancerControllerConfig `json:"loadBalancer,omitempty"`
}

// ReconcilerConfig is a controller with a period and nothing else.
type ReconcilerConfig struct {
	ReconcilerPeriod *Duration `json:"reconcilerPeriod,omitempty"`
}

// NodeControllerConfig sets the controller of nodes and of leaked addresses.
type NodeControllerConfig struct {
	ReconcilerPeriod *Duration               `json:"reconcilerPeriod,omitempty"`
	SyncLabels       string                  `json:"syncLabels,omitempty"` // "Enabled" or "Disabled"
	HostEndpoint     *AutoHostEndpointConfig `json:"hostEndpoint,omitempty"`
	LeakGracePeriod  *Duration               `json:"leakGracePeriod,omitempty"` // 0: leaked addresses are kept
}

// AutoHostEndpointConfig sets how host endpoints are made for nodes.
type AutoHostEndpointConfig struct {
	AutoCreate                string                 `json:"autoCreate,omitempty"`
	CreateDefaultHostEndpoint string                 `json:"createDefaultHostEndpoint,omitempty"`
	Templates                 []HostEndpointTemplate `json:"templates,omitempty"`
}

// HostEndpointTemplate makes host endpoints of the nodes it selects.
type HostEndpointTemplate struct {
	GenerateName      string            `json:"generateName,omitempty"`
	InterfaceCIDRs    []string          `json:"interfaceCIDRs,omitempty"`
	InterfacePattern  string            `json:"interfacePattern,omitempty"`  // regular expression
	InterfaceSelector string            `json:"interfaceSelector,omitempty"` // its name up to v3.31
	Labels            map[string]string `json:"labels,omitempty"`
	NodeSelector      string            `json:"nodeSelector,omitempty"`
}

// LoadBalancerControllerConfig sets which services get an address.
type LoadBalancerControllerConfig struct {
	AssignIPs string `json:"assignIPs,omitempty"` // "AllServices" or "RequestedServicesOnly"
}

// KubeControllersConfigurationStatus is what the controllers run with.
type KubeControllersConfigurationStatus struct {
	RunningConfig   KubeControllersConfigurationSpec `json:"runningConfig"`
	EnvironmentVars map[string]string                `json:"environmentVars,omitempty"`
}

// Default fills the head and respells CIDRs.
func (k *KubeControllersConfiguration) Default() {
	k.setType("KubeControllersConfiguration")
	if n := k.Spec.Controllers.Node; n != nil && n.HostEndpoint != nil {
		for i := range n.HostEndpoint.Templates {
			maskCIDRs(n.HostEndpoint.Templates[i].InterfaceCIDRs)
		}
	}
}

// Validate checks switches, ports, periods and templates.
func (k *KubeControllersConfiguration) Validate() error {
	c := newChecker(&k.Resource, "KubeControllersConfiguration", false)
	s := &k.Spec
	c.oneOf("Spec.LogSeverityScreen", s.LogSeverityScreen, "None", "Debug", "Info", "Warning", "Error", "Fatal", "Panic")
	c.oneOf("Spec.HealthChecks", s.HealthChecks, "Enabled", "Disabled")
	c.notNegative("Spec.EtcdV3CompactionPeriod", s.EtcdV3CompactionPeriod)
	c.withinPtr("Spec.PrometheusMetricsPort", s.PrometheusMetricsPort, 0, 65535)
	c.withinPtr("Spec.DebugProfilePort", s.DebugProfilePort, 0, 65535)
	for _, r := range []struct {
		name   string
		config *ReconcilerConfig
	}{
		{"Policy", s.Controllers.Policy},
		{"WorkloadEndpoint", s.Controllers.WorkloadEndpoint},
		{"ServiceAccount", s.Controllers.ServiceAccount},
		{"Namespace", s.Controllers.Namespace},
	} {
		if r.config != nil {
			c.notNegative("Spec.Controllers."+r.name+".ReconcilerPeriod", r.config.ReconcilerPeriod)
		}
	}
	if lb := s.Controllers.LoadBalancer; lb != nil {
		c.oneOf("Spec.Controllers.LoadBalancer.AssignIPs", lb.AssignIPs, "AllServices", "RequestedServicesOnly")
	}
	if n := s.Controllers.Node; n != nil {
		c.nodeController("Spec.Controllers.Node", n)
	}
	return c.Err()
}

func (c *checker) nodeController(path string, n *NodeControllerConfig) {
	c.notNegative(path+".ReconcilerPeriod", n.ReconcilerPeriod)
	c.notNegative(path+".LeakGracePeriod", n.LeakGracePeriod)
	c.oneOf(path+".SyncLabels", n.SyncLabels, "Enabled", "Disabled")
	h := n.HostEndpoint
	if h == nil {
		return
	}
	path += ".HostEndpoint"
	c.oneOf(path+".AutoCreate", h.AutoCreate, "Enabled", "Disabled")
	c.oneOf(path+".CreateDefaultHostEndpoint", h.CreateDefaultHostEndpoint, "Enabled", "Disabled")
	names := map[string]bool{}
	for i := range h.Templates {
		t, at := &h.Templates[i], index(path+".Templates", i)
		if names[t.GenerateName] {
			c.add(at+".GenerateName", clip(t.GenerateName), "two templates have this name")
		}
		names[t.GenerateName] = true
		c.template(at, t)
	}
}

func (c *checker) template(path string, t *HostEndpointTemplate) {
	if t.GenerateName != "" {
		c.name(path+".GenerateName", t.GenerateName)
	}
	for i, s := range t.InterfaceCIDRs {
		c.net(index(path+".InterfaceCIDRs", i), s)
	}
	c.regexp(path+".InterfacePattern", &t.InterfacePattern)
	c.regexp(path+".InterfaceSelector", &t.InterfaceSelector)
	if len(t.InterfaceCIDRs) == 0 && t.InterfacePattern == "" && t.InterfaceSelector == "" {
		c.add(path, clip(t.GenerateName), "a template needs interfaceCIDRs, interfacePattern or both")
	}
	c.labels(path+".Labels", t.Labels)
	c.selector(path+".NodeSelector", t.NodeSelector, false)
}

func kubeControllersConfigurationKind() Kind {
	return Kind{
		Name: "KubeControllersConfiguration", Plural: "kubecontrollersconfigurations",
		Aliases: []string{"kubecontrollersconfig", "kubecontrollersconfigs"},
		New:     func() Object { return &KubeControllersConfiguration{} },
		Columns: []Column{nameColumn()},
	}
}
