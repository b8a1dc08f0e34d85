//! Users that may log in: names and hashed passwords.

use std::{
    collections::BTreeMap,
    net::Ipv6Addr,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bcrypt::HashParts;
use hashlink::LruCache;
use ring::{error::Unspecified, hmac, rand::SystemRandom};

/// The highest cost of a hash: each step doubles the time of a login, which is about a second here.
const MAX_COST: u32 = 14;
/// The lowest that bcrypt knows.
const MIN_COST: u32 = 4;
/// Logins that are remembered as good.
const MAX_REMEMBERED: usize = 256;

/// Users, and the logins that were good since they were read.
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
    /// A hash of no password for each cost that [`Self::hashes`] has, by cost.
    dummies: BTreeMap<u32, String>,
    key: hmac::Key,
    remembered: Mutex<LruCache<[u8; 32], ()>>,
}

/// What a login is known by later; the password cannot be had from it.
pub(super) struct Token([u8; 32]);

impl Users {
    /// `hashes` are those that [`check_hash`] takes.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Result<Self, Unspecified> {
        let dummies = hashes.values().filter_map(|hash| cost(hash)).map(|cost| (cost, dummy(cost))).collect();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?;
        Ok(Self { hashes, dummies, key, remembered: Mutex::new(LruCache::new(MAX_REMEMBERED)) })
    }

    /// `login` is `user:password`.
    pub(super) fn token(&self, network: Ipv6Addr, login: &[u8]) -> Token {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&network.octets());
        context.update(login);
        let mut token = [0; 32];
        token.copy_from_slice(context.sign().as_ref());
        Token(token)
    }

    /// Whether this login was good before, from the same network.
    pub(super) fn remembers(&self, token: &Token) -> bool {
        self.remembered().get(&token.0).is_some()
    }

    /// The login was good.
    pub(super) fn remember(&self, token: Token) {
        self.remembered().insert(token.0, ());
    }

    /// Whether the password is that of the user. Takes as long as the costs say: not for an asynchronous thread.
    pub(super) fn verify(&self, user: &[u8], password: &[u8]) -> bool {
        self.verify_by(user, |hash| bcrypt::verify(password, hash).unwrap_or(false))
    }

    /// Every login costs one verification for each cost that is configured, in the same order, whether the name exists or not,
    /// and whatever its own cost: the time does not show which names exist.
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
        // What a panicking thread left is whole.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(hash: &str) -> Option<u32> {
    HashParts::from_str(hash).ok().map(|parts| parts.get_cost())
}

/// The salt of 16 zero bytes and a hash of 23 zero bytes. Should a password have it, it opens nothing.
fn dummy(cost: u32) -> String {
    format!("$2b${cost:02}${}", ".".repeat(53))
}

/// Whether this is a hash that a password can be compared with; if not, why. The reason does not quote it.
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

    /// Of `correct`.
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
        // bcrypt does the work of a dummy, instead of refusing its form.
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
