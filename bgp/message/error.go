package message

import (
	"errors"
	"fmt"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// Error codes and subcodes used here (RFC 4271 §4.5 and §6).
const (
	codeHeader = 1
	codeOpen   = 2
	codeUpdate = 3
	codeHold   = 4
	codeFSM    = 5
	codeCease  = 6

	subNotSynchronized = 1
	subBadLength       = 2
	subBadType         = 3

	subBadVersion       = 1
	subBadPeerAS        = 2
	subBadID            = 3
	subBadParameter     = 4
	subBadHoldTime      = 6
	subBadCapability    = 7
	subAttributeList    = 1
	subUnrecognized     = 2
	subOptionalAttr     = 9
	subNetworkField     = 10
	ceaseMaxPrefixes    = 1
	ceaseDeconfigured   = 3
	ceaseRejected       = 5
	ceaseConfigChange   = 6
	ceaseCollision      = 7
	ceaseOutOfResources = 8
	ceaseBFDDown        = 10 // RFC 9384
)

// Error is a fault that ends a session with the NOTIFICATION it describes.
type Error struct {
	Code, Subcode uint8
	Data          []byte
	Text          string // what was wrong, in words
}

func (e *Error) Error() string { return e.Text }

// Notification returns the NOTIFICATION message that reports e.
func (e *Error) Notification() []byte {
	data := e.Data
	if len(data) > 256 {
		data = data[:256]
	}
	return mustSerialize(wire.NewBGPNotificationMessage(e.Code, e.Subcode, data))
}

// The Cease and timer errors that a speaker raises on its own account (RFC 4486, RFC 4271 §6.5-6.7).
func MaxPrefixes(limit int) *Error {
	return &Error{Code: codeCease, Subcode: ceaseMaxPrefixes, Text: fmt.Sprintf("peer sent more than %d prefixes", limit)}
}

// Deconfigured says that the peer was removed from the configuration.
func Deconfigured() *Error {
	return &Error{Code: codeCease, Subcode: ceaseDeconfigured, Text: "peer removed from the configuration"}
}

// BFDDown says that the path to the peer has failed (RFC 9384).
func BFDDown(reason string) *Error {
	return &Error{Code: codeCease, Subcode: ceaseBFDDown, Text: "BFD: " + reason}
}

// LinkDown says that no interface leads to the peer any more.
func LinkDown() *Error {
	return &Error{Code: codeCease, Text: "no interface of this host is on the peer's subnet any more"}
}

// Rejected says that no further connection is taken from this peer now.
func Rejected(why string) *Error {
	return &Error{Code: codeCease, Subcode: ceaseRejected, Text: why}
}

// Collision closes the loser of a connection collision (RFC 4271 §6.8).
func Collision() *Error {
	return &Error{Code: codeCease, Subcode: ceaseCollision, Text: "connection collision: the other connection is kept"}
}

// HoldExpired says that nothing was heard for the hold time.
func HoldExpired() *Error { return &Error{Code: codeHold, Text: "hold timer expired"} }

// Unexpected says that a message of type t came in a state that does not allow it (RFC 6608).
func Unexpected(t Type, state string) *Error {
	sub := map[string]uint8{"OpenSent": 1, "OpenConfirm": 2, "Established": 3}[state]
	return &Error{Code: codeFSM, Subcode: sub, Text: fmt.Sprintf("unexpected message type %d in state %s", t, state)}
}

// Internal is the Cease that ends a session after a fault of our own.
func Internal(text string) *Error {
	return &Error{Code: codeCease, Subcode: ceaseOutOfResources, Text: text}
}

// NotificationError is a NOTIFICATION received from the peer.
type NotificationError struct{ Code, Subcode uint8 }

func (e *NotificationError) Error() string {
	return "peer closed the session: " + notificationText(e.Code, e.Subcode)
}

// Collision reports whether the peer closed this connection in favour of another one.
func (e *NotificationError) Collision() bool {
	return e.Code == codeCease && e.Subcode == ceaseCollision
}

// DecodeNotification reads the body of a NOTIFICATION.
func DecodeNotification(body []byte) *NotificationError {
	if len(body) < 2 {
		return &NotificationError{}
	}
	return &NotificationError{Code: body[0], Subcode: body[1]}
}

// notificationText says in words what the codes of RFC 4271 §4.5, RFC 4486, RFC 6608 mean.
func notificationText(code, sub uint8) string {
	words := map[[2]uint8]string{
		{codeOpen, subBadPeerAS}: "wrong AS number", {codeOpen, subBadID}: "bad router ID",
		{codeOpen, subBadHoldTime}: "unacceptable hold time", {codeOpen, subBadVersion}: "unsupported version",
		{codeOpen, subBadCapability}: "unsupported capability", {codeHold, 0}: "hold timer expired",
		{codeCease, ceaseMaxPrefixes}: "maximum number of prefixes reached", {codeCease, 2}: "administrative shutdown",
		{codeCease, ceaseDeconfigured}: "peer de-configured", {codeCease, 4}: "administrative reset",
		{codeCease, ceaseRejected}: "connection rejected", {codeCease, ceaseConfigChange}: "configuration change",
		{codeCease, ceaseCollision}: "connection collision", {codeCease, ceaseOutOfResources}: "out of resources",
		{codeCease, ceaseBFDDown}: "BFD down",
	}
	if w, ok := words[[2]uint8{code, sub}]; ok {
		return w
	}
	class := map[uint8]string{
		codeHeader: "message header error", codeOpen: "OPEN message error",
		codeUpdate: "UPDATE message error", codeFSM: "state machine error", codeCease: "cease",
	}[code]
	if class == "" {
		class = "unknown error"
	}
	return fmt.Sprintf("%s (code %d/%d)", class, code, sub)
}

// fault turns an error of the codec into an *Error; codes it leaves at zero become code/sub.
func fault(err error, code, sub uint8) *Error {
	var e *wire.MessageError
	if errors.As(err, &e) && e.TypeCode != 0 {
		return &Error{Code: e.TypeCode, Subcode: e.SubTypeCode, Text: e.Message}
	}
	return &Error{Code: code, Subcode: sub, Text: err.Error()}
}

// NoCommonFamily refuses a peer that offers none of the families wanted.
func NoCommonFamily(text string) *Error {
	return &Error{Code: codeOpen, Subcode: subBadCapability, Text: text}
}

// Cease reports whether the error is of the class Cease: a limit or fault of our own rather than an error
// of the peer, after which trying again at once is of no use.
func (e *Error) Cease() bool { return e.Code == codeCease }
