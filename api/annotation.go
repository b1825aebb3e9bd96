package api

import (
	"fmt"
	"strconv"
)

// What Calico's schema has no field for stands in annotations of the object
// that it belongs to, so that Calico's own tools carry it along.
const (
	// AnnotationRouteReflection on BGPConfiguration default says who chooses the
	// route reflectors: "Manual" (also when absent) or "Auto".
	AnnotationRouteReflection = "maneki.net/route-reflection"
	// AnnotationReflectionThreshold is the number of hosts beyond which Auto
	// replaces the mesh.
	AnnotationReflectionThreshold = "maneki.net/route-reflection-threshold"
	// AnnotationReflectionCount is how many reflectors Auto keeps.
	AnnotationReflectionCount = "maneki.net/route-reflection-count"
	// AnnotationReflectionSpread names the label over whose values the
	// reflectors are spread.
	AnnotationReflectionSpread = "maneki.net/route-reflection-spread"
	// AnnotationReflectionMesh is written by Auto when it turns the mesh off: what
	// nodeToNodeMeshEnabled was, "true" or "unset".
	AnnotationReflectionMesh = "maneki.net/route-reflection-mesh"
	// AnnotationOwner marks an object that a controller made and may delete.
	AnnotationOwner = "maneki.net/owner"
	// LabelRouteReflector marks the nodes that Auto has chosen ("auto"). Any
	// other value, written by a person, keeps a node from being chosen.
	LabelRouteReflector = "maneki.net/route-reflector"
)

// The values of the annotations and of the label.
const (
	ReflectionManual = "Manual"
	ReflectionAuto   = "Auto"
	ReflectorAuto    = "auto"
	OwnerReflection  = "route-reflection"
)

// Defaults and limits of Auto.
const (
	DefaultReflectionThreshold = 50
	DefaultReflectionSpread    = "topology.kubernetes.io/zone"
	minReflectionThreshold     = 4
	maxReflectionThreshold     = 100000
	minReflectionCount         = 2
	maxReflectionCount         = 16
)

// RouteReflection is how the route reflectors are chosen.
type RouteReflection struct {
	Auto      bool
	Threshold int    // hosts beyond which there are reflectors
	Count     int    // reflectors wanted; 0: by the number of hosts
	Spread    string // label
}

// RouteReflection reads the annotations. A nil b is Manual. The error is a
// *FieldErrors; the settings are then Manual.
func (b *BGPConfiguration) RouteReflection() (RouteReflection, error) {
	if b == nil {
		return manualReflection(), nil
	}
	c := &checker{kind: "BGPConfiguration"}
	r := c.reflection(b)
	if err := c.Err(); err != nil {
		return manualReflection(), err
	}
	return r, nil
}

func manualReflection() RouteReflection {
	return RouteReflection{Threshold: DefaultReflectionThreshold, Spread: DefaultReflectionSpread}
}

// reflection reads and checks the annotations of route reflection.
func (c *checker) reflection(b *BGPConfiguration) RouteReflection {
	r := manualReflection()
	if b.Name != "default" {
		for _, name := range []string{AnnotationRouteReflection, AnnotationReflectionThreshold, AnnotationReflectionCount, AnnotationReflectionSpread} {
			if v, ok := b.Annotations[name]; ok {
				c.annotation(name, v, "only on BGPConfiguration default")
			}
		}
		return r
	}
	mode, ok := b.Annotations[AnnotationRouteReflection]
	if ok && mode != ReflectionManual && mode != ReflectionAuto {
		c.annotation(AnnotationRouteReflection, mode, "must be Manual or Auto")
	}
	r.Auto = mode == ReflectionAuto
	r.Threshold = c.number(b, AnnotationReflectionThreshold, r.Threshold, minReflectionThreshold, maxReflectionThreshold)
	r.Count = c.number(b, AnnotationReflectionCount, 0, minReflectionCount, maxReflectionCount)
	if label, ok := b.Annotations[AnnotationReflectionSpread]; ok {
		r.Spread = label
		if !ValidLabelKey(label) {
			c.annotation(AnnotationReflectionSpread, label, "must be the name of a label")
		}
	}
	return r
}

// Reflectors is how many reflectors a cluster of so many hosts gets.
func (r RouteReflection) Reflectors(hosts int) int {
	if r.Count > 0 {
		return r.Count
	}
	if hosts > 200 {
		return 3
	}
	return 2
}

// Least is the number of hosts below which Auto goes back to the mesh: four
// fifths of the threshold, so that a cluster at the threshold does not go to and
// fro.
func (r RouteReflection) Least() int { return max(r.Threshold*4/5, 2) }

// annotation reports a wrong value of an annotation.
func (c *checker) annotation(name, value, reason string) {
	c.add("Metadata.Annotations["+name+"]", clip(value), reason)
}

// number reads an annotation that is a number.
func (c *checker) number(b *BGPConfiguration, name string, def, least, most int) int {
	text, ok := b.Annotations[name]
	if !ok {
		return def
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		c.annotation(name, text, fmt.Sprintf("must be %d to %d", least, most))
		return def
	}
	return n
}
