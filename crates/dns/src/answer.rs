//! From a question to a message, by the zone alone. Pure.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::zone::Place;
use crate::{Lookup, Zone};

/// Seconds that answers may be kept, as in CoreDNS' `kubernetes` plug-in.
const TTL: u32 = 5;
/// What we accept over UDP ourselves, and send at most (the size of DNS Flag Day 2020).
const MAX_UDP: u16 = 1232;
/// Aliases followed inside the cluster's domain.
const MAX_ALIASES: usize = 8;

/// What to do with a question.
pub enum Reply {
    /// Send this.
    Message(Message),
    /// Ask somebody else.
    Forward,
    /// Ask somebody else for the addresses of this name, and add them to the message.
    Complete(Message, Name),
    /// Say nothing: it was no question.
    Silence,
}

fn name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn labels(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect()
}

fn address(owner: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(a) => RData::A(A(a)),
        IpAddr::V6(a) => RData::AAAA(AAAA(a)),
    };
    Record::from_rdata(owner.clone(), TTL, data)
}

fn wants(kind: RecordType, address: IpAddr) -> bool {
    matches!((kind, address), (RecordType::A, IpAddr::V4(_)) | (RecordType::AAAA, IpAddr::V6(_)))
}

fn soa(zone: &Zone) -> Option<Record> {
    let domain = zone.domain();
    let data = SOA::new(
        name(&format!("ns.dns.{domain}"))?,
        name(&format!("hostmaster.{domain}"))?,
        zone.serial(),
        7200,
        1800,
        86400,
        TTL,
    );
    Some(Record::from_rdata(name(&domain)?, TTL, RData::SOA(data)))
}

/// Answers a question, or says who can.
pub fn respond(zone: &Zone, request: &Message) -> Reply {
    if request.metadata.message_type != MessageType::Query {
        return Reply::Silence;
    }
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.recursion_available = true;
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata = metadata;
    response.add_queries(request.queries.iter().cloned());
    if let Some(edns) = &request.edns {
        let mut own = Edns::new();
        own.set_max_payload(MAX_UDP);
        own.set_dnssec_ok(edns.flags().dnssec_ok);
        response.set_edns(own);
    }
    let fail = |mut response: Message, code| {
        response.metadata.response_code = code;
        Reply::Message(response)
    };
    if request.metadata.op_code != OpCode::Query {
        return fail(response, ResponseCode::NotImp);
    }
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return fail(response, ResponseCode::BADVERS);
    }
    let [query] = &request.queries[..] else { return fail(response, ResponseCode::FormErr) };
    if query.query_class() != DNSClass::IN {
        return Reply::Forward;
    }
    let lookup = zone.lookup(&labels(query.name()));
    if lookup == Lookup::Foreign {
        return Reply::Forward;
    }
    response.metadata.authoritative = true;
    fill(zone, lookup, query, response)
}

fn fill(zone: &Zone, mut lookup: Lookup, query: &Query, mut response: Message) -> Reply {
    let kind = query.query_type();
    let mut owner = query.name().clone();
    for _ in 0..MAX_ALIASES {
        let Lookup::Alias(target) = &lookup else { break };
        let Some(target) = name(target) else { break };
        response.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
        if !matches!(kind, RecordType::A | RecordType::AAAA) {
            return Reply::Message(response);
        }
        owner = target;
        lookup = zone.lookup(&labels(&owner));
        if lookup == Lookup::Foreign {
            return Reply::Complete(response, owner);
        }
    }
    match lookup {
        Lookup::Missing => response.metadata.response_code = ResponseCode::NXDomain,
        Lookup::Places(places) => fill_places(&places, kind, &owner, &mut response),
        Lookup::Pointers(names) if kind == RecordType::PTR => {
            let pointers = names.iter().filter_map(|n| name(n));
            let records = pointers.map(|n| Record::from_rdata(owner.clone(), TTL, RData::PTR(PTR(n))));
            response.add_answers(records.collect::<Vec<_>>());
        }
        Lookup::Version if kind == RecordType::TXT => {
            let data = RData::TXT(TXT::new(vec!["1.1.0".into()]));
            response.add_answer(Record::from_rdata(owner, TTL, data));
        }
        Lookup::Apex if kind == RecordType::SOA => response.add_answers(soa(zone)).metadata.authoritative = true,
        Lookup::Apex if kind == RecordType::NS => {
            let server = name(&format!("ns.dns.{}", zone.domain()));
            response.add_answers(server.map(|s| Record::from_rdata(owner, TTL, RData::NS(NS(s)))));
        }
        _ => {}
    }
    if response.answers.is_empty() {
        response.add_authorities(soa(zone));
    }
    Reply::Message(response)
}

fn fill_places(places: &[Place], kind: RecordType, owner: &Name, response: &mut Message) {
    if kind == RecordType::SRV {
        let mut targets: Vec<(&str, u16)> = Vec::new();
        for place in places.iter().filter(|place| place.port != 0) {
            if !targets.contains(&(&place.name, place.port)) {
                targets.push((&place.name, place.port));
            }
        }
        let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(0).max(1);
        for (target, port) in targets {
            let Some(target) = name(target) else { continue };
            let data = RData::SRV(SRV::new(0, weight, port, target));
            response.add_answer(Record::from_rdata(owner.clone(), TTL, data));
        }
        let mut known: Vec<(&str, IpAddr)> = Vec::new();
        for place in places.iter().filter(|place| place.port != 0) {
            if !known.contains(&(&place.name, place.address)) {
                known.push((&place.name, place.address));
                response.add_additionals(name(&place.name).map(|target| address(&target, place.address)));
            }
        }
        return;
    }
    let mut addresses: Vec<IpAddr> = places.iter().map(|p| p.address).filter(|a| wants(kind, *a)).collect();
    addresses.sort();
    addresses.dedup();
    if !addresses.is_empty() {
        // Clients take the first: let each question have another one. The identifier is random.
        let first = usize::from(response.metadata.id) % addresses.len();
        addresses.rotate_left(first);
    }
    response.add_answers(addresses.into_iter().map(|a| address(owner, a)).collect::<Vec<_>>());
}

/// Encodes a message for UDP, leaving out what the asker has no room for.
pub(crate) fn encode_udp(mut message: Message, request: &Message) -> Option<Vec<u8>> {
    let room = usize::from(request.edns.as_ref().map_or(512, |edns| edns.max_payload().clamp(512, MAX_UDP)));
    loop {
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= room {
            return Some(bytes);
        }
        if !message.additionals.is_empty() {
            message.additionals.clear();
        } else if message.answers.is_empty() {
            message.authorities.clear();
            return message.to_vec().ok();
        } else {
            message.metadata.truncation = true;
            let keep = message.answers.len() * 3 / 4;
            message.answers.truncate(keep);
        }
    }
}

/// A failure of ours, for any question that could be read.
pub(crate) fn failure(request: &Message) -> Message {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.recursion_available = true;
    metadata.response_code = ResponseCode::ServFail;
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata = metadata;
    response.add_queries(request.queries.iter().cloned());
    response
}
