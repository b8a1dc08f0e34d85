//! Meaning of each kind of finding and the next steps, for the person on call. The pages and the plain-text export
//! share these texts.

use smtpwatch_core::{
    cause::About,
    finding::{Evidence, Kind, Outcome},
};

/// What happened, as the end of a sentence whose subject is the address that it is about.
#[must_use]
pub const fn happened(kind: Kind, about: About) -> &'static str {
    match about {
        About::Guessing => return "unknown clients tried passwords in cleartext",
        About::ThisHost => {
            if let Some(offer) = own_offer(kind) {
                return offer;
            }
        }
        About::Peer => {}
    }
    match kind {
        Kind::StarttlsStripped => "the offer of encryption (STARTTLS) was missing from the server's reply",
        Kind::StarttlsMasked => "a line of the server's reply was overwritten in place",
        Kind::StarttlsRefused => "encryption (STARTTLS) was offered, requested, and refused",
        Kind::StarttlsUnused => "encryption (STARTTLS) was offered and not used by a peer known to use it",
        Kind::CommandRewritten => "a command arrived in another form than it was sent",
        Kind::EhloDowngraded => "EHLO, which encryption requires, was refused by a server known to support it",
        Kind::TlsHandshakeFailed => "encryption was agreed on, but was not established",
        Kind::DowngradeRetry => "encryption failed, and mail was then sent in cleartext",
        Kind::TlsDowngraded => "encryption was weaker than required or than before",
        Kind::CertificateMismatch => "the server's certificate contradicts its published policy",
        Kind::CommandInjection => "cleartext commands stood where encryption should begin",
        Kind::ResponseInjection => "cleartext replies stood where encryption should begin",
        Kind::AuthPlaintext => "a password or token crossed the network in cleartext",
        Kind::AuthExchangePlaintext => "a challenge-response login crossed the network in cleartext",
        Kind::AuthOfferedPlaintext => "the server offers logins before encryption",
        Kind::PolicyViolation => "mail was sent in cleartext although a policy demands encryption",
        Kind::StreamTampering => "packets differ in a way that only a device on the path explains",
    }
}

/// What the listener of this host does; `None` for the kinds that are never its own doing.
const fn own_offer(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::AuthOfferedPlaintext => Some("this host offers AUTH before TLS"),
        Kind::StarttlsRefused => Some("this host offers STARTTLS and refuses it"),
        Kind::StarttlsStripped
        | Kind::StarttlsMasked
        | Kind::StarttlsUnused
        | Kind::CommandRewritten
        | Kind::EhloDowngraded
        | Kind::TlsHandshakeFailed
        | Kind::DowngradeRetry
        | Kind::TlsDowngraded
        | Kind::CertificateMismatch
        | Kind::CommandInjection
        | Kind::ResponseInjection
        | Kind::AuthPlaintext
        | Kind::AuthExchangePlaintext
        | Kind::PolicyViolation
        | Kind::StreamTampering => None,
    }
}

/// The title of an incident that is not about a peer; `None` if it is. `addresses` is the number of addresses in words.
#[must_use]
pub fn headline(kind: Kind, about: About, findings: u64, addresses: &str) -> Option<String> {
    match about {
        About::Peer => None,
        About::ThisHost => own_offer(kind).map(str::to_owned),
        About::Guessing => {
            let attempts = if findings == 1 { "attempt" } else { "attempts" };
            Some(format!("password guessing in cleartext: {findings} {attempts} from {addresses}"))
        }
    }
}

/// The recommended next steps.
#[must_use]
pub const fn next(kind: Kind, about: About) -> &'static str {
    match (about, kind) {
        (About::Guessing, _) => {
            "None of these logins was accepted. Offer logins only under encryption (Postfix: smtpd_tls_auth_only = yes), so that no \
             password is sent in cleartext, and limit how often a client may try (for example with fail2ban)."
        }
        (About::ThisHost, Kind::StarttlsRefused) => {
            "The mail server of this host answers STARTTLS with an error. Check its certificate, its key and its log (Postfix: \
             smtpd_tls_chain_files), or stop offering STARTTLS until it works."
        }
        (About::Peer | About::ThisHost, kind) => next_of_kind(kind),
    }
}

const fn next_of_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::StarttlsStripped | Kind::StarttlsMasked | Kind::EhloDowngraded | Kind::CommandRewritten => {
            "Connect to the server from another network (openssl s_client -starttls smtp -connect SERVER:25). If STARTTLS is offered \
             there, a device on your path removes it: check your own firewall's SMTP inspection first (Cisco ASA: inspect esmtp), \
             then ask your carrier. If it is missing there too, the server has changed: ask its postmaster. Until then, a \
             policy that demands encryption keeps mail in the queue instead of sending it in cleartext."
        }
        Kind::StarttlsRefused | Kind::TlsHandshakeFailed => {
            "Compare with a connection from another network. A refusal in words that this product does not use, or a reset within \
             milliseconds, comes from the path; an incompatible certificate or TLS version comes from the server."
        }
        Kind::DowngradeRetry => {
            "The message was sent readable. Find out which side ended the handshake (see the indicators below), and demand \
             encryption for this destination, so that the mail server waits instead of falling back."
        }
        Kind::StarttlsUnused => {
            "The peer may not see the offer, because a device on the path removes it. Ask its postmaster what its server receives."
        }
        Kind::TlsDowngraded => {
            "Check the version and cipher suite below. Set a minimum in the mail server, and find out what lowered it."
        }
        Kind::CertificateMismatch => {
            "Fetch the certificate from another network. If it differs there, a device on the path terminates the encryption. \
             If it is the same, the peer's policy or certificate is out of date: inform its postmaster."
        }
        Kind::CommandInjection | Kind::ResponseInjection => {
            "A third party inserted data into the connection before encryption began. Update the mail server (it must discard \
             such data), and keep this evidence."
        }
        Kind::AuthPlaintext => {
            "Assume that the password is known, and change it now. Then configure the client (its address is below) to use port \
             465 or to require STARTTLS, and stop the server from accepting logins in cleartext."
        }
        Kind::AuthExchangePlaintext => {
            "The exchange allows offline guessing of the password. Change it if it is weak, and require encryption for logins."
        }
        Kind::AuthOfferedPlaintext => {
            "Configure the server to offer logins only under encryption (Postfix: smtpd_tls_auth_only = yes)."
        }
        Kind::PolicyViolation => {
            "The owner of the domain asks senders not to do this. Make the mail server enforce the policy: smtpwatch policy export."
        }
        Kind::StreamTampering => {
            "Keep the evidence. Compare time to live and timing of the two copies below: they show how far away the other sender is."
        }
    }
}

/// The certainty that the evidence gives.
#[must_use]
pub const fn how_sure(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Suspicious => "unusual, but some correct configurations do the same",
        Evidence::Regression => "it contradicts the history of this peer",
        Evidence::Policy => "it contradicts a policy",
        Evidence::Tamper => "the bytes themselves show that they were edited",
    }
}

/// The consequence for mail or credentials.
#[must_use]
pub const fn cost(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Attempt => "no mail was sent in cleartext in this session",
        Outcome::Envelope => "sender and recipient addresses were sent in cleartext",
        Outcome::Content => "a whole message was sent in cleartext",
        Outcome::Credential => "a credential was sent in cleartext",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_host_does_is_not_blamed_on_the_path_or_a_peer() {
        let own = [
            (Kind::AuthOfferedPlaintext, About::ThisHost),
            (Kind::StarttlsRefused, About::ThisHost),
            (Kind::AuthPlaintext, About::Guessing),
            (Kind::AuthExchangePlaintext, About::Guessing),
        ];
        for (kind, about) in own {
            for text in [happened(kind, about), next(kind, about)] {
                assert!(!["path", "peer", "carrier"].iter().any(|word| text.contains(word)), "{kind}: {text}");
            }
            assert_ne!(happened(kind, about), happened(kind, About::Peer));
        }
        assert!(next(Kind::StarttlsRefused, About::Peer).contains("path"));
    }

    #[test]
    fn a_headline_counts_attempts() {
        let of = |findings, about| headline(Kind::AuthPlaintext, about, findings, "300 addresses");
        let guessing = "password guessing in cleartext: 1500 attempts from 300 addresses";
        assert_eq!(of(1_500, About::Guessing).as_deref(), Some(guessing));
        assert_eq!(of(1, About::Guessing).map(|text| text.contains(" 1 attempt from ")), Some(true));
        assert_eq!(of(1_500, About::Peer), None);
        let own = headline(Kind::AuthOfferedPlaintext, About::ThisHost, 9, "3 addresses");
        assert_eq!(own.as_deref(), Some("this host offers AUTH before TLS"));
    }
}
