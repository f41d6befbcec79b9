//! What is asked of an etcd cluster as a whole: its members, adding, promoting and removing them, their health, a
//! lease. The last connection is kept for the next question.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proto::Message;
use proto::etcd as pb;
use proto::etcd::method;
use proto::grpc::{self, Channel, Code, Settings, Status};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long connecting and one answer may take.
const CONNECT: Duration = Duration::from_secs(2);
/// etcd itself gives up on a change of the member list after about this.
const ANSWER: Duration = Duration::from_secs(7);

/// How long a change of the member list is tried again that is refused because members have just come.
const SETTLED: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// By what members are known, and what is shown to them (PEM).
#[derive(Clone)]
pub struct Access {
    /// The CA of their certificates.
    pub ca: String,
    /// Our certificate and key.
    pub certificate: Option<(String, String)>,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A URL is none.
    #[error("{0:?} is no URL of an etcd member: https://HOST:PORT is meant")]
    Url(String),
    /// Certificates cannot be used.
    #[error("the certificates for etcd")]
    Tls(#[from] client::TlsError),
    /// No member answered.
    #[error("no member of etcd answers: {0}")]
    Unreachable(String),
    /// etcd refused.
    #[error("etcd refuses: {0}")]
    Refused(String),
}

/// How a member is.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// Its id.
    pub id: u64,
    /// Its version.
    pub version: String,
    /// The member that leads, as far as it knows; 0 for none.
    pub leader: u64,
    /// Whether it only learns yet.
    pub learner: bool,
}

/// The members of a cluster that may be asked.
#[derive(Clone)]
pub struct Cluster {
    endpoints: Vec<String>,
    tls: Option<TlsConnector>,
    answer: Duration,
    /// The last connection, and to where.
    kept: Arc<Mutex<Option<(String, Channel)>>>,
}

impl Cluster {
    /// By the URLs of some of its members. Without `access`, they serve plain text.
    pub fn new(endpoints: &[String], access: Option<&Access>) -> Result<Cluster, Error> {
        let tls = match access {
            None => None,
            Some(access) => {
                let credentials = client::Credentials { certificate: access.certificate.clone(), token: None };
                let mut config = client::tls_config(&access.ca, &credentials)?;
                config.alpn_protocols = vec![b"h2".to_vec()];
                Some(TlsConnector::from(Arc::new(config)))
            }
        };
        Ok(Cluster { endpoints: endpoints.to_vec(), tls, answer: ANSWER, kept: Arc::default() })
    }

    /// The same access to other members.
    pub fn at(&self, endpoints: &[String]) -> Cluster {
        Cluster { endpoints: endpoints.to_vec(), tls: self.tls.clone(), answer: self.answer, kept: Arc::default() }
    }

    /// The same members, with no more time for an answer than this.
    pub fn with_patience(&self, answer: Duration) -> Cluster {
        Cluster { answer, kept: Arc::default(), ..self.clone() }
    }

    /// The URLs that are asked.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    async fn connect(&self, url: &str) -> Result<Channel, Status> {
        let down = |e: std::io::Error| Status { unsent: true, ..Status::new(Code::Unavailable, e.to_string()) };
        let bad = || Status { unsent: true, ..Status::new(Code::InvalidArgument, format!("{url:?} is no URL of an etcd member")) };
        let uri: http::Uri = url.parse().map_err(|_| bad())?;
        let (host, port) = (uri.host().ok_or_else(bad)?, uri.port_u16().unwrap_or(2379));
        let connect = async {
            let stream = TcpStream::connect((host.trim_start_matches('[').trim_end_matches(']'), port)).await.map_err(down)?;
            stream.set_nodelay(true).map_err(down)?;
            match (&self.tls, uri.scheme_str()) {
                (Some(tls), Some("https")) => {
                    let name = client::server_name(host).map_err(|_| bad())?;
                    let stream = tls.connect(name, stream).await.map_err(down)?;
                    let (channel, connection) = grpc::connect(stream, url, Settings::default()).await?;
                    tokio::spawn(connection);
                    Ok(channel)
                }
                _ => {
                    let (channel, connection) = grpc::connect(stream, url, Settings::default()).await?;
                    tokio::spawn(connection);
                    Ok(channel)
                }
            }
        };
        tokio::time::timeout(CONNECT, connect).await.unwrap_or_else(|_| Err(Status { unsent: true, ..Status::new(Code::Unavailable, "connecting takes too long") }))
    }

    /// Asks one member after the other until one has an answer, the one first that has answered last. What changes
    /// something is only repeated elsewhere if it was not sent.
    async fn ask<Q: Message, S: Message + Default>(&self, method: &'static str, request: &Q, changes: bool) -> Result<S, Error> {
        let mut why = "no URL is known".to_owned();
        let last = self.kept.lock().as_ref().map(|(at, _)| at.clone());
        let mut urls: Vec<&String> = self.endpoints.iter().collect();
        urls.sort_by_key(|url| Some(*url) != last.as_ref());
        for url in urls {
            match self.ask_one(url, method, request).await {
                Ok(answer) => return Ok(answer),
                // A learner takes none of these questions.
                Err(status) if status.message.contains("rpc not supported for learner") => why = format!("{url} only learns yet"),
                Err(status) if matches!(status.code, Code::Unavailable | Code::DeadlineExceeded) && (status.unsent || !changes) => why = format!("{url}: {}", status.message),
                Err(status) if status.code == Code::Unavailable && !status.message.starts_with("etcdserver:") => return Err(Error::Unreachable(format!("{url}: {}", status.message))),
                Err(status) => return Err(Error::Refused(status.message)),
            }
        }
        Err(Error::Unreachable(why))
    }

    async fn ask_one<Q: Message, S: Message + Default>(&self, url: &str, method: &'static str, request: &Q) -> Result<S, Status> {
        let kept = self.kept.lock().take().filter(|(at, channel)| at == url && !channel.is_closed());
        let channel = match kept {
            Some((_, channel)) => channel,
            None => self.connect(url).await?,
        };
        let answer = channel.unary(method, request, self.answer).await;
        if !matches!(&answer, Err(status) if matches!(status.code, Code::Unavailable | Code::DeadlineExceeded)) {
            *self.kept.lock() = Some((url.to_owned(), channel));
        }
        answer
    }

    /// A key's value, and the revision that wrote it, as a quorum knows them.
    pub async fn read(&self, key: &str) -> Result<Option<(Vec<u8>, i64)>, Error> {
        let found: pb::RangeResponse = self.ask(method::RANGE, &pb::RangeRequest { key: key.into(), ..Default::default() }, false).await?;
        Ok(found.kvs.into_iter().next().map(|kv| (kv.value.to_vec(), kv.mod_revision)))
    }

    /// Writes a key that was written by the revision `seen`, or is not there (0), and by nobody since; whether it did.
    pub async fn replace(&self, key: &str, seen: i64, value: &str) -> Result<bool, Error> {
        let put = pb::PutRequest { key: key.into(), value: value.to_owned().into(), ..Default::default() };
        self.only_if(key, pb::CompareTarget::Mod, pb::compare::TargetUnion::ModRevision(seen), pb::request_op::Request::Put(put), true).await
    }

    /// Writes a key that has this value once more; whether it had. May be done twice.
    pub async fn renew(&self, key: &str, value: &str) -> Result<bool, Error> {
        let put = pb::PutRequest { key: key.into(), value: value.to_owned().into(), ..Default::default() };
        self.only_if(key, pb::CompareTarget::Value, pb::compare::TargetUnion::Value(value.as_bytes().to_vec()), pb::request_op::Request::Put(put), false).await
    }

    /// Deletes a key that has this value; whether it had.
    pub async fn give_up(&self, key: &str, value: &str) -> Result<bool, Error> {
        let delete = pb::DeleteRangeRequest { key: key.into(), ..Default::default() };
        self.only_if(key, pb::CompareTarget::Value, pb::compare::TargetUnion::Value(value.as_bytes().to_vec()), pb::request_op::Request::DeleteRange(delete), false).await
    }

    /// Does something to a key that is so; whether it was.
    async fn only_if(&self, key: &str, target: pb::CompareTarget, is: pb::compare::TargetUnion, what: pb::request_op::Request, changes: bool) -> Result<bool, Error> {
        let compare = pb::Compare { result: pb::CompareResult::Equal as i32, target: target as i32, key: key.into(), target_union: Some(is), range_end: Vec::new() };
        let success = vec![pb::RequestOp { request: Some(what) }];
        let done: pb::TxnResponse = self.ask(method::TXN, &pb::TxnRequest { compare: vec![compare], success, failure: Vec::new() }, changes).await?;
        Ok(done.succeeded)
    }

    /// The members, as a quorum knows them.
    pub async fn members(&self) -> Result<Vec<pb::Member>, Error> {
        let list: pb::MemberListResponse = self.ask(method::MEMBER_LIST, &pb::MemberListRequest { linearizable: true }, false).await?;
        Ok(list.members)
    }

    /// Adds a member that learns; its id.
    pub async fn add_learner(&self, peer_url: &str) -> Result<u64, Error> {
        let request = pb::MemberAddRequest { peer_urls: vec![peer_url.to_owned()], is_learner: true };
        let added: pb::MemberAddResponse = self.ask(method::MEMBER_ADD, &request, true).await?;
        Ok(added.member.map(|m| m.id).unwrap_or_default())
    }

    /// Makes a learner a member with a vote. Refused as long as it has not caught up.
    pub async fn promote(&self, id: u64) -> Result<(), Error> {
        self.ask::<_, pb::MemberListResponse>(method::MEMBER_PROMOTE, &pb::MemberRequest { id }, true).await.map(drop)
    }

    /// Tells where a member is from now on.
    pub async fn update(&self, id: u64, peer_url: &str) -> Result<(), Error> {
        let request = pb::MemberUpdateRequest { id, peer_urls: vec![peer_url.to_owned()] };
        self.ask::<_, pb::MemberListResponse>(method::MEMBER_UPDATE, &request, true).await.map(drop)
    }

    /// Removes a member. etcd refuses as long as the others have not known each other for five seconds.
    pub async fn remove(&self, id: u64) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            match self.ask::<_, pb::MemberListResponse>(method::MEMBER_REMOVE, &pb::MemberRequest { id }, true).await {
                Err(Error::Refused(why)) if why.ends_with("unhealthy cluster") && began.elapsed() < SETTLED => tokio::time::sleep(PAUSE).await,
                removed => return removed.map(drop),
            }
        }
    }

    /// How the first member that answers is.
    pub async fn health(&self) -> Result<Health, Error> {
        let status: pb::StatusResponse = self.ask(method::STATUS, &pb::StatusRequest {}, false).await?;
        Ok(Health {
            id: status.header.map(|h| h.member_id).unwrap_or_default(),
            version: status.version,
            leader: status.leader,
            learner: status.is_learner,
        })
    }

    /// Whether a quorum answers: a read that all have to agree on.
    pub async fn agrees(&self) -> Result<(), Error> {
        let request = pb::RangeRequest { key: b"health".to_vec(), count_only: true, ..Default::default() };
        self.ask::<_, pb::RangeResponse>(method::RANGE, &request, false).await.map(drop)
    }
}
