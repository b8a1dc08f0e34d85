//! A DNS server with signed, unsigned and broken zones.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hickory_server::{
    Server,
    dnssec::NxProofKind,
    net::runtime::{Time, TokioRuntimeProvider},
    proto::{
        dnssec::{
            Algorithm, DigestType, DnssecSigner, PublicKey as _, SigningKey as _, crypto::EcdsaSigningKey,
            rdata::DNSKEY,
        },
        op::ResponseCode,
        rr::{LowerName, Name, RecordType},
        serialize::txt::Parser,
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    store::in_memory::InMemoryZoneHandler,
    zone_handler::{AxfrPolicy, Catalog, MessageResponseBuilder, ZoneHandler as _, ZoneType},
};
use smtpwatch_config::Config;
use tokio::net::{TcpListener, UdpSocket};

/// How the parent zone delegates a zone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Delegation {
    /// Signed; the parent has its DS record.
    Secure,
    /// Not signed.
    Plain,
    /// Signed with a key other than the one in the parent's DS record.
    Broken,
}

/// One zone below the root.
pub struct Zone {
    pub origin: &'static str,
    pub delegation: Delegation,
    pub records: String,
}

/// A running DNS server; dropping it ends it.
pub struct NameServer {
    pub address: SocketAddr,
    /// The root's key in zone-file form.
    pub anchor: String,
    /// DS data of one key of each zone, the root first.
    pub digests: Vec<String>,
    _server: Server<Parents>,
}

/// Routes DS queries to the parent zone, which here is always the root.
struct Parents {
    catalog: Catalog,
    root: Catalog,
}

#[async_trait::async_trait]
impl RequestHandler for Parents {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let ds = request.queries.queries().iter().any(|query| query.query_type() == RecordType::DS);
        // As a validating server that rejects this zone (RFC 4035 §3.2.2).
        let refused = |name: &LowerName| name.to_string().ends_with("refused.test.");
        let queries = request.queries.queries();
        if !request.metadata.checking_disabled && queries.iter().any(|query| refused(query.name())) {
            let failure = MessageResponseBuilder::from_message_request(request);
            let failure = failure.error_msg(&request.metadata, ResponseCode::ServFail);
            return response.send_response(failure).await.unwrap();
        }
        let catalog = if ds { &self.root } else { &self.catalog };
        catalog.handle_request::<R, T>(request, response).await
    }
}

impl NameServer {
    /// Serves the zones. With `unsigned` the root has no signatures, as with a server that does not return any.
    pub async fn start(zones: Vec<Zone>, unsigned: bool) -> Self {
        let (mut catalog, mut root_catalog) = (Catalog::new(), Catalog::new());
        let (mut root, mut digests) = (String::new(), Vec::new());
        for zone in zones {
            let signer = signer();
            let published = if zone.delegation == Delegation::Broken { self::signer() } else { signer.clone() };
            root += &format!("{} NS ns.{}\n", zone.origin, zone.origin);
            if zone.delegation != Delegation::Plain {
                root += &ds(zone.origin, &published.0);
            }
            digests.push(ds(zone.origin, &signer.0).trim().to_owned());
            let signed = zone.delegation != Delegation::Plain && !unsigned;
            let handler = handler(zone.origin, &zone.records, signed.then_some(signer));
            catalog.upsert(LowerName::new(&name(zone.origin)), vec![handler]);
        }
        let signer = signer();
        let anchor = anchor(".", &signer.0);
        digests.insert(0, ds(".", &signer.0).trim().to_owned());
        let handler = handler(".", &root, (!unsigned).then_some(signer));
        catalog.upsert(LowerName::new(&Name::root()), vec![handler.clone()]);
        root_catalog.upsert(LowerName::new(&Name::root()), vec![handler]);

        let mut server = Server::new(Parents { catalog, root: root_catalog });
        // A port that is free for both protocols: another process may use it for one of them.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(5), 64);
        Self { address, anchor, digests, _server: server }
    }

    /// A configuration that uses this DNS server and trusts its root.
    pub fn config(&self) -> Config {
        self.config_with("")
    }

    /// As [`NameServer::config`], with further keys of `[policy]`.
    pub fn config_with(&self, keys: &str) -> Config {
        let Self { address, anchor, .. } = self;
        let text =
            format!("[policy]\nresolver = \"{address}\"\ntrust_anchor = \"{anchor}\"\nallow_private = true\n{keys}\n");
        Config::parse(&text, std::path::Path::new("test.toml")).unwrap()
    }
}

type Signer = (DNSKEY, Vec<u8>);

fn signer() -> Signer {
    let key = EcdsaSigningKey::generate_pkcs8(Algorithm::ECDSAP256SHA256).unwrap();
    let signing = EcdsaSigningKey::from_pkcs8(&key, Algorithm::ECDSAP256SHA256).unwrap();
    let key_record = DNSKEY::new(true, true, false, signing.to_public_key().unwrap());
    (key_record, key.secret_pkcs8_der().to_vec())
}

fn handler(origin: &str, records: &str, signer: Option<Signer>) -> Arc<InMemoryZoneHandler> {
    let origin = name(origin);
    let apex = if origin.is_root() { "" } else { &origin.to_ascii() };
    let text = format!(
        "$TTL 300\n@ SOA ns.{apex} admin.{apex} 1 3600 600 86400 60\n@ NS ns.{apex}\nns.{apex} A 127.0.0.1\n{records}"
    );
    let text = text.replace("ns. ", "ns.root. ").replace("admin. ", "admin.root. ").replace("ns.\n", "ns.root.\n");
    let (_, records) = Parser::new(text.as_str(), None, Some(origin.clone())).parse().unwrap();
    let proofs = signer.is_some().then_some(NxProofKind::Nsec);
    let mut handler: InMemoryZoneHandler<TokioRuntimeProvider> =
        InMemoryZoneHandler::new(origin.clone(), records, ZoneType::Primary, AxfrPolicy::Deny, proofs).unwrap();
    if let Some((record, key)) = signer {
        let key = EcdsaSigningKey::from_pkcs8(&key.into(), Algorithm::ECDSAP256SHA256).unwrap();
        let signer = DnssecSigner::new(record, Box::new(key), origin, Duration::from_secs(86_400));
        handler.add_zone_signing_key_mut(signer).unwrap();
        if !handler.origin().is_root() {
            // A second key that no parent has a DS record of.
            let (record, key) = self::signer();
            let key = EcdsaSigningKey::from_pkcs8(&key.into(), Algorithm::ECDSAP256SHA256).unwrap();
            let origin = handler.origin().into();
            let signer = DnssecSigner::new(record, Box::new(key), origin, Duration::from_secs(86_400));
            handler.add_zone_signing_key_mut(signer).unwrap();
        }
        handler.secure_zone_mut().unwrap();
    }
    Arc::new(handler)
}

fn ds(zone: &str, key: &DNSKEY) -> String {
    let digest = key.to_digest(&name(zone), DigestType::SHA256).unwrap();
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    format!("{zone} DS {} 13 2 {digest}\n", key.calculate_key_tag().unwrap())
}

fn anchor(zone: &str, key: &DNSKEY) -> String {
    format!("{zone} IN DNSKEY {} 3 13 {}", key.flags(), STANDARD.encode(key.public_key().public_bytes()))
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}
