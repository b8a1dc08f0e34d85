//! What a kind of finding means and what to do next, for a person who was woken by it.

use smtpwatch_core::finding::{Evidence, Kind, Outcome};

/// What happened, as the end of a sentence that names the peer.
#[must_use]
pub const fn happened(kind: Kind) -> &'static str {
    match kind {
        Kind::StarttlsStripped => "the offer of encryption (STARTTLS) was missing from the server's reply",
        Kind::StarttlsMasked => "a line of the server's reply was overwritten in place",
        Kind::StarttlsRefused => "encryption (STARTTLS) was offered, asked for, and refused",
        Kind::StarttlsUnused => "encryption (STARTTLS) was offered and not used by a peer that is known to use it",
        Kind::CommandRewritten => "a command arrived that is not the one that was sent",
        Kind::EhloDowngraded => {
            "EHLO, without which there is no encryption, was refused by a server that is known to speak it"
        }
        Kind::TlsHandshakeFailed => "encryption was agreed on, and did not come about",
        Kind::DowngradeRetry => "encryption failed, and mail was then handed over in clear",
        Kind::TlsDowngraded => "encryption was weaker than is demanded or than it used to be",
        Kind::CertificateMismatch => "the server's certificate is not the one that its policy demands",
        Kind::CommandInjection => "commands in clear stood where encryption should begin",
        Kind::ResponseInjection => "replies in clear stood where encryption should begin",
        Kind::AuthPlaintext => "a password or token crossed the network in clear",
        Kind::AuthExchangePlaintext => "a challenge-response login crossed the network in clear",
        Kind::AuthOfferedPlaintext => "the server offers logins before encryption",
        Kind::PolicyViolation => "mail was handed over in clear although a policy demands encryption",
        Kind::StreamTampering => "packets differ in a way that only a device on the path explains",
    }
}

/// What to do next.
#[must_use]
pub const fn next(kind: Kind) -> &'static str {
    match kind {
        Kind::StarttlsStripped | Kind::StarttlsMasked | Kind::EhloDowngraded | Kind::CommandRewritten => {
            "Ask the server from another network (openssl s_client -starttls smtp -connect SERVER:25). If the offer is there, a \
             device on your path takes it away: look first at your own firewall's SMTP inspection (Cisco ASA: inspect esmtp), \
             then ask your carrier. If it is missing there too, the server has changed: ask its postmaster. Until then, a \
             policy that demands encryption keeps mail in the queue instead of sending it in clear."
        }
        Kind::StarttlsRefused | Kind::TlsHandshakeFailed => {
            "Compare with a connection from another network. A refusal in words that the product does not use, or a reset in the \
             first milliseconds, comes from the path; a certificate or version that cannot be agreed on comes from the server."
        }
        Kind::DowngradeRetry => {
            "The message went out readable. Find who ended the handshake (the proof below names the side), and demand encryption \
             for this destination, so that the mail server waits instead of falling back."
        }
        Kind::StarttlsUnused => {
            "The peer may no longer see the offer: a device near it may take it away. Ask its postmaster what its server received."
        }
        Kind::TlsDowngraded => {
            "Look at the version and suite below; set a minimum in the mail server, and ask who lowered it."
        }
        Kind::CertificateMismatch => {
            "Fetch the certificate from another network. If it is another one there, somebody on the path ends the encryption; \
             if it is the same, the policy or the certificate of the peer is out of date: tell its postmaster."
        }
        Kind::CommandInjection | Kind::ResponseInjection => {
            "Somebody wrote into the connection before encryption began. Bring the mail server up to date (it must discard what \
             stands before the handshake), and keep this evidence."
        }
        Kind::AuthPlaintext => {
            "Take the password for known: change it now. Then find the client (its address is below) and switch it to port 465 or \
             to STARTTLS as required, and stop the server from accepting logins in clear."
        }
        Kind::AuthExchangePlaintext => {
            "The password can be guessed offline from what crossed. Change it if it is weak, and require encryption for logins."
        }
        Kind::AuthOfferedPlaintext => {
            "Set the server to offer logins under encryption only (Postfix: smtpd_tls_auth_only = yes)."
        }
        Kind::PolicyViolation => {
            "The owner of the domain asks senders not to do this. Let the mail server enforce it: smtpwatch policy export."
        }
        Kind::StreamTampering => {
            "Keep the evidence. Compare time to live and timing of the two copies below: they tell how far away the other sender is."
        }
    }
}

/// How sure that is.
#[must_use]
pub const fn how_sure(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Suspicious => "odd, but honest set-ups do it too",
        Evidence::Regression => "it contradicts what this peer did before",
        Evidence::Policy => "it contradicts a policy",
        Evidence::Tamper => "the octets prove that they were edited",
    }
}

/// What it cost.
#[must_use]
pub const fn cost(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Attempt => "no mail crossed in clear in that session",
        Outcome::Envelope => "addresses of sender and recipient crossed in clear",
        Outcome::Content => "a whole message crossed in clear",
        Outcome::Credential => "a credential crossed in clear",
    }
}
