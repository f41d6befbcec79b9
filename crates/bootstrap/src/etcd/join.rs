//! Becoming a member, and ceasing to be one. What is to be done next is [`plan`]'s; this asks, does it and looks again,
//! so that a join that was cut short anywhere goes on where it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::certs::CertError;
use super::client::{Cluster, Error, Health};
use super::member::{Member, Note, Program};
use super::plan::{self, Own, Step};
use super::process::{State, Supervisor};
use super::Listed;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// To be added to the member list: others may be joining.
    pub added: Duration,
    /// For a learner that was added and has never come, until it is taken off the list.
    pub never_came: Duration,
    /// To catch up with the others, or for a first member to serve.
    pub caught_up: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { added: Duration::from_secs(90), never_came: Duration::from_secs(30), caught_up: Duration::from_secs(90) }
    }
}

/// Why a machine did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The cluster did not answer, or refused.
    #[error("joining etcd at {at}")]
    Cluster {
        /// Where it was asked.
        at: String,
        /// What came of it.
        #[source]
        source: Error,
    },
    /// It is not possible like this.
    #[error("{0}")]
    Refused(String),
    /// Others were joining all the time.
    #[error("etcd's cluster takes one new member at a time, and waits for another one at {0}: try again when it has joined, or remove it (knarr etcd remove)")]
    Busy(String),
    /// The process does not come up.
    #[error("etcd on this machine does not serve within {within:?}: {why}; its log is {log}")]
    NotServing {
        /// How long was waited.
        within: Duration,
        /// What it said, or what failed.
        why: String,
        /// Where to look.
        log: String,
    },
    /// It was taken off the list.
    #[error("this machine's member was removed from etcd's cluster; to join again, name other members by --etcd-join")]
    Removed,
    /// Certificates or notes.
    #[error(transparent)]
    File(#[from] CertError),
    /// The data of a removed member cannot be moved.
    #[error("the data of a member that was removed cannot be set aside")]
    SetAside(#[source] std::io::Error),
}

/// Becomes a member of the cluster that `others` are of, or begins one where there are none; or goes on being what it
/// was. `spawn` runs the supervisor, until the member is to end. Returns when the member serves.
pub async fn join(member: &Member, program: &Program, others: Option<&Cluster>, local: &Cluster, patience: &Patience, spawn: impl FnOnce(Arc<Supervisor>)) -> Result<(), JoinError> {
    let initial = match others {
        Some(others) if !others.endpoints().is_empty() => expected(member, others, patience).await?,
        _ if member.has_data() => None,
        _ => Some((format!("{}={}", member.name, member.peer_url()), false)),
    };
    let initial = initial.as_ref().map(|(list, existing)| (list.as_str(), *existing));
    let supervisor = Arc::new(Supervisor::new(member, program, initial));
    let mut state = supervisor.state();
    spawn(supervisor);
    let served = serves(member, others, local, patience, &mut state).await;
    if served.is_err()
        && let (Some(others), Some((_, true))) = (others, initial)
    {
        withdraw(member, others).await;
    }
    served?;
    if let Err(error) = settle(member, local).await {
        tracing::warn!("{}: the cluster does not know yet that this member of etcd is there: {error}", member.peer_url());
    }
    refresh(member, local).await;
    Ok(())
}

/// Tells the cluster where this member is, if it knows it elsewhere: where the others could not say so without it.
async fn settle(member: &Member, local: &Cluster) -> Result<(), Error> {
    let (id, peer_url) = (local.health().await?.id, member.peer_url());
    match local.members().await?.iter().find(|m| m.id == id) {
        Some(own) if !own.peer_urls.contains(&peer_url) => {
            tracing::warn!("the member {} of etcd was at {}, and is at {peer_url} from now on", member.name, own.peer_urls.join(","));
            local.update(id, &peer_url).await
        }
        _ => Ok(()),
    }
}

/// Notes its id, and who the others are, for the next start; to be done now and then.
pub async fn refresh(member: &Member, local: &Cluster) {
    let Ok(members) = local.members().await else { return };
    let id = members.iter().find(|m| m.peer_urls.contains(&member.peer_url())).map(|m| m.id);
    let note = Note { id, others: client_urls(&members, member) };
    if note != member.note()
        && let Err(error) = member.write_note(&note)
    {
        tracing::warn!("{error}");
    }
}

/// Where clients reach the other members.
fn client_urls(members: &[Listed], but: &Member) -> Vec<String> {
    let others = members.iter().filter(|m| !m.peer_urls.contains(&but.peer_url()) && !m.is_learner);
    others.flat_map(|m| m.client_urls.iter().cloned()).collect()
}

/// Sees that the cluster expects this member; the list it begins with, unless it has data.
async fn expected(member: &Member, others: &Cluster, patience: &Patience) -> Result<Option<(String, bool)>, JoinError> {
    let failed = |source| JoinError::Cluster { at: others.endpoints().join(","), source };
    let peer_url = member.peer_url();
    let (began, mut waiting, mut told) = (Instant::now(), None, false);
    loop {
        let late = began.elapsed() > patience.added;
        let note = member.note();
        let members = match others.members().await {
            Ok(members) => members,
            // With data it needs nobody's leave to start.
            Err(_) if member.has_data() => return Ok(None),
            Err(error) if late => return Err(failed(error)),
            Err(error) => {
                tracing::debug!("the member list cannot be read: {error}");
                tokio::time::sleep(LOOK * 5).await;
                continue;
            }
        };
        let own = Own { name: &member.name, peer_url: &peer_url, data: member.has_data(), id: note.id };
        let step = plan::next(&own, &members);
        let done = match step {
            Step::Run => return Ok(None),
            Step::Begin { id, initial } => {
                member.write_note(&Note { id: Some(id), others: client_urls(&members, member) })?;
                return Ok(Some((initial, true)));
            }
            Step::Refuse(why) => return Err(JoinError::Refused(why)),
            Step::SetAside => {
                tracing::warn!("the member of etcd that was here has been removed: its data are set aside");
                let aside = member.data.with_extension("removed");
                let moved = match std::fs::remove_dir_all(&aside) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                    _ => std::fs::rename(&member.data, &aside),
                };
                moved.map_err(JoinError::SetAside)?;
                continue;
            }
            Step::Remove { id, why } => {
                tracing::warn!("the member {} of etcd is replaced: {why}", member.name);
                others.remove(id).await
            }
            Step::Move { id, from } => {
                tracing::warn!("the member {} of etcd was at {from}, and is at {peer_url} from now on", member.name);
                others.update(id, &peer_url).await
            }
            Step::Add => others.add_learner(&peer_url).await.map(drop),
            Step::Wait { id, url, come } => {
                let since = *match &mut waiting {
                    Some((who, since)) if *who == id => since,
                    other => &mut other.insert((id, Instant::now())).1,
                };
                if !come && since.elapsed() > patience.never_came {
                    tracing::warn!("the member of etcd that was to come at {url} has not: it is removed");
                    others.remove(id).await
                } else if late {
                    return Err(JoinError::Busy(url));
                } else {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!("another member, at {url}, joins etcd: waiting for it");
                    }
                    Ok(())
                }
            }
        };
        match done {
            Ok(()) => tokio::time::sleep(LOOK).await,
            Err(error) if late => return Err(failed(error)),
            // Somebody else was faster, or a change is under way: look again.
            Err(error) => {
                tracing::debug!("{error}; trying again");
                tokio::time::sleep(LOOK * 5).await;
            }
        }
    }
}

/// Waits until the member serves: as a learner, it has caught up, and was promoted.
async fn serves(member: &Member, others: Option<&Cluster>, local: &Cluster, patience: &Patience, state: &mut tokio::sync::watch::Receiver<State>) -> Result<(), JoinError> {
    let (began, mut why) = (Instant::now(), "it does not answer".to_owned());
    let noted = others.map(|o| o.at(&member.note().others));
    while began.elapsed() < patience.caught_up {
        match &*state.borrow_and_update() {
            State::Removed => return Err(JoinError::Removed),
            State::Ended(said) => why = said.clone(),
            State::Starting | State::Running(_) => {}
        }
        match local.health().await {
            Ok(Health { learner: true, id, .. }) => {
                // By those that have a vote.
                let voters = [others, noted.as_ref()].into_iter().flatten().filter(|c| !c.endpoints().is_empty());
                for cluster in voters {
                    match cluster.promote(id).await {
                        Ok(()) => {
                            tracing::info!("{} is a member of etcd's cluster with a vote", member.name);
                            break;
                        }
                        Err(error) => why = format!("it only learns yet: {error}"),
                    }
                }
            }
            Ok(health) if health.leader != 0 => match local.agrees().await {
                Ok(()) => return Ok(()),
                Err(error) => why = error.to_string(),
            },
            Ok(_) => why = "it has no leader: too few members answer".into(),
            Err(_) => {}
        }
        tokio::time::sleep(LOOK / 2).await;
    }
    Err(JoinError::NotServing { within: patience.caught_up, why, log: member.log().display().to_string() })
}

/// Takes a learner that did not make it off the list, so that others may join.
async fn withdraw(member: &Member, others: &Cluster) {
    let Ok(members) = others.members().await else { return };
    if let Some(own) = members.iter().find(|m| m.is_learner && m.peer_urls.contains(&member.peer_url())) {
        match others.remove(own.id).await {
            Ok(()) => tracing::warn!("{} did not become a member of etcd's cluster, and was taken off its list", member.name),
            Err(error) => tracing::warn!("{} stays on etcd's member list as a learner: {error}", member.name),
        }
    }
}

/// Takes this machine's member off the list, by the others. The last member of all stays.
pub async fn leave(member: &Member, cluster: &Cluster) -> Result<bool, Error> {
    let members = cluster.members().await?;
    let Some(own) = members.iter().find(|m| m.peer_urls.contains(&member.peer_url())) else { return Ok(false) };
    if members.iter().filter(|m| !m.is_learner).count() == 1 && !own.is_learner {
        return Ok(false);
    }
    let others = client_urls(&members, member);
    cluster.at(&others).remove(own.id).await?;
    Ok(true)
}
