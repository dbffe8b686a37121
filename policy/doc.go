// Package policy decides which sources a build may use, and puts others in their place.
//
// A *rule* selects sources by their identifier, such as "docker-image://docker.io/library/alpine:3", and by their attributes,
// and allows them, denies them or converts them. Of the rules of one policy that allow or deny, the last that matches counts; a
// source that no rule selects is allowed. A converted source is looked at again, so that it is subject to the rules too. Each
// of several policies must let a source pass. A client may check sources as well ([Options].Check): it is asked after the rules.
//
// The rules are BuildKit's (sourcepolicy/pb), with its ways of matching: WILDCARD, in which "*" is any text and "$1" in an
// update stands for the first of them, EXACT, and REGEX.
//
//	p, err := policy.New(policy.Options{}, rules)
//	op, err = p.Source(ctx, &graph.Image{Ref: "docker.io/library/alpine:3"}, platform)
package policy
