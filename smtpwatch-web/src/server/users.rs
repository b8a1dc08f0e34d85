//! Users that may log in: names and hashed passwords. [`Users`] verifies passwords at a constant cost and remembers
//! successful logins.

use std::{
    collections::BTreeMap,
    net::Ipv6Addr,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bcrypt::HashParts;
use hashlink::LruCache;
use ring::{error::Unspecified, hmac, rand::SystemRandom};

/// Maximum cost of a hash. Each step doubles the time of a login; at this cost it takes about a second.
const MAX_COST: u32 = 14;
/// The minimum cost of bcrypt.
const MIN_COST: u32 = 4;
/// Maximum number of remembered logins.
const MAX_REMEMBERED: usize = 256;

/// Users, and the successful logins since the file was read.
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
    /// A dummy hash for each cost that occurs in [`Self::hashes`], by cost.
    dummies: BTreeMap<u32, String>,
    key: hmac::Key,
    remembered: Mutex<LruCache<[u8; 32], ()>>,
}

/// Identifies a successful login; the password cannot be derived from it.
pub(super) struct Token([u8; 32]);

impl Users {
    /// `hashes` must have passed [`check_hash`].
    ///
    /// # Errors
    ///
    /// The system cannot provide random numbers.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Result<Self, Unspecified> {
        let dummies = hashes.values().filter_map(|hash| cost(hash)).map(|cost| (cost, dummy(cost))).collect();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?;
        Ok(Self { hashes, dummies, key, remembered: Mutex::new(LruCache::new(MAX_REMEMBERED)) })
    }

    /// The token of a login; `login` is `user:password`.
    pub(super) fn token(&self, network: Ipv6Addr, login: &[u8]) -> Token {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&network.octets());
        context.update(login);
        let mut token = [0; 32];
        token.copy_from_slice(context.sign().as_ref());
        Token(token)
    }

    /// Whether this login has succeeded before, from the same network.
    pub(super) fn remembers(&self, token: &Token) -> bool {
        self.remembered().get(&token.0).is_some()
    }

    /// Remembers a successful login.
    pub(super) fn remember(&self, token: Token) {
        self.remembered().insert(token.0, ());
    }

    /// Whether the password is correct for the user. Takes the time of the configured costs: do not call it on an
    /// asynchronous thread.
    pub(super) fn verify(&self, user: &[u8], password: &[u8]) -> bool {
        self.verify_by(user, |hash| bcrypt::verify(password, hash).unwrap_or(false))
    }

    /// Every login costs one verification for each configured cost, in the same order, whether the name exists or not:
    /// the time does not reveal which names exist.
    fn verify_by(&self, user: &[u8], mut verify: impl FnMut(&str) -> bool) -> bool {
        let hash = str::from_utf8(user).ok().and_then(|user| self.hashes.get(user));
        let own_cost = hash.and_then(|hash| cost(hash));
        let mut good = false;
        for (cost, dummy) in &self.dummies {
            let own = hash.filter(|_| own_cost == Some(*cost));
            good |= verify(own.unwrap_or(dummy)) & own.is_some();
        }
        good
    }

    fn remembered(&self) -> MutexGuard<'_, LruCache<[u8; 32], ()>> {
        // A panicking thread leaves a valid value.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(hash: &str) -> Option<u32> {
    HashParts::from_str(hash).ok().map(|parts| parts.get_cost())
}

/// A hash with a salt of 16 zero bytes and a digest of 23 zero bytes. A password that matches it still gives no access.
fn dummy(cost: u32) -> String {
    format!("$2b${cost:02}${}", ".".repeat(53))
}

/// Checks that this is a supported bcrypt hash. The error does not quote it.
pub(super) fn check_hash(hash: &str) -> Result<(), String> {
    let parts = match HashParts::from_str(hash) {
        Ok(parts) if ["$2a$", "$2b$", "$2y$"].iter().any(|form| hash.starts_with(form)) => parts,
        _ => {
            return Err("this is no bcrypt hash ($2a$, $2b$ or $2y$): make one with `htpasswd -nBC 10 NAME`".to_owned());
        }
    };
    match parts.get_cost() {
        MIN_COST..=MAX_COST => Ok(()),
        cost => Err(format!("the cost of its hash is {cost}: expected {MIN_COST} to {MAX_COST}, such as 10")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The user `alice` with the password `correct`.
    fn users() -> Users {
        Users::new(BTreeMap::from([("alice".to_owned(), bcrypt::hash("correct", MIN_COST).unwrap())])).unwrap()
    }

    #[test]
    fn passwords() {
        let users = users();
        for (user, password, expected) in [
            ("alice", "correct", true),
            ("alice", "wrong", false),
            ("alice", "", false),
            ("Alice", "correct", false),
            ("nobody", "correct", false),
            ("", "", false),
        ] {
            assert_eq!(users.verify(user.as_bytes(), password.as_bytes()), expected, "{user} {password}");
        }
    }

    #[test]
    fn every_login_verifies_one_hash_of_each_cost_that_is_configured() {
        let hashes = [("alice", 5), ("bob", 4), ("carol", 4), ("dave", 6)];
        let hashed = |(name, cost): (&str, u32)| (name.to_owned(), bcrypt::hash("correct", cost).unwrap());
        let users = Users::new(hashes.into_iter().map(hashed).collect()).unwrap();
        for (user, own) in
            [("alice", Some(5)), ("bob", Some(4)), ("dave", Some(6)), ("nobody", None), ("", None), ("Alice", None)]
        {
            for good in [true, false] {
                let mut verified = Vec::new();
                let outcome = users.verify_by(user.as_bytes(), |hash| {
                    verified.push(cost(hash).expect("a hash that bcrypt takes"));
                    good
                });
                assert_eq!(verified, [4, 5, 6], "{user}");
                assert_eq!(outcome, good && own.is_some(), "{user}: a dummy that matches opens nothing");
            }
            assert_eq!(users.verify(user.as_bytes(), b"correct"), own.is_some(), "{user}");
            assert!(!users.verify(user.as_bytes(), b"wrong"), "{user}");
        }
        // bcrypt computes the dummy instead of rejecting its form.
        assert!(!bcrypt::verify("correct", &dummy(4)).expect("a form that bcrypt takes"));
        assert_eq!(check_hash(&dummy(MAX_COST)), Ok(()));
    }

    #[test]
    fn good_logins_are_remembered_within_a_bound_and_by_network() {
        let (users, here, there) = (users(), Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
        users.remember(users.token(here, b"alice:correct"));
        assert!(users.remembers(&users.token(here, b"alice:correct")));
        assert!(!users.remembers(&users.token(here, b"alice:wrong")));
        assert!(!users.remembers(&users.token(there, b"alice:correct")));
        for number in 0..1000_u32 {
            users.remember(users.token(here, &number.to_be_bytes()));
            assert!(users.remembered().len() <= MAX_REMEMBERED);
            assert!(users.remembers(&users.token(here, b"alice:correct")), "what is used is kept");
        }
    }

    #[test]
    fn hashes() {
        let hash = "$2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze";
        assert_eq!(check_hash(hash), Ok(()));
        assert_eq!(check_hash(&hash.replace("$2y", "$2a")), Ok(()));
        for (bad, why) in [
            ("secret".to_owned(), "no bcrypt hash"),
            (hash.replace("$2y", "$2x"), "no bcrypt hash"),
            (hash[..59].to_owned(), "no bcrypt hash"),
            (hash.replace("$10$", "$15$"), "cost of its hash is 15"),
            (hash.replace("$10$", "$03$"), "cost of its hash is 3"),
            (hash.replace("$10$", "$1x$"), "no bcrypt hash"),
            (format!("{hash}x"), "no bcrypt hash"),
        ] {
            let message = check_hash(&bad).unwrap_err();
            assert!(message.contains(why) && !message.contains(&bad), "{bad}: {message}");
        }
    }
}
