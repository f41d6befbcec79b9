//! Rule sets in force in the kernel, tried with real packets over loopback. Each test's thread has a
//! network namespace of its own.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nft::fake::Fake;
use nft::{
    Elements, Family, Field, Hook, HookKind, HookPoint, Kernel, Key, Nftables, Reject, Rule, RuleSet, Set, Statement,
    Type, Verdict,
};

/// Moves this thread to a new network namespace and brings its loopback up.
fn isolate() {
    // SAFETY: changes this thread only; the request struct is initialised and outlives the calls.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNET), 0);
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &request), 0);
        libc::close(socket);
    }
}

fn key(address: &str, protocol: u8, port: u16) -> Key {
    Key::new().address(address.parse().unwrap()).protocol(protocol).port(port)
}

fn target(address: &str, port: u16) -> (IpAddr, u16) {
    (address.parse().unwrap(), port)
}

/// 10.0.0.1:80 over TCP and UDP goes to one of `targets`; 10.0.0.2:80 is refused.
fn service(targets: &[(IpAddr, u16)]) -> RuleSet {
    let mut rules = RuleSet::new(Family::Ip, "test", "of the nft crate");
    let tuple = vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort];
    let types = vec![Type::Address, Type::Protocol, Type::Port];
    let verdicts = [6, 17].map(|protocol| (key("10.0.0.1", protocol, 80), Verdict::Goto("service".into())));
    let services = Set { key: types.clone(), elements: Elements::Verdicts(BTreeMap::from(verdicts)) };
    rules.sets.insert("services".into(), services);
    let verdicts = [6, 17].map(|protocol| (key("10.0.0.2", protocol, 80), Verdict::Goto("reject".into())));
    rules.sets.insert("empty".into(), Set { key: types, elements: Elements::Verdicts(BTreeMap::from(verdicts)) });
    rules.sets.insert("seen".into(), Set { key: vec![Type::Address], elements: Elements::Dynamic(1000) });
    let hook = |kind, point, priority| Some(Hook { kind, point, priority });
    rules.chain(
        "output",
        hook(HookKind::Nat, HookPoint::Output, -100),
        vec![Rule::new([Statement::Map(tuple.clone(), "services".into())]).comment("services")],
    );
    rules.chain(
        "service",
        None,
        vec![
            Rule::new([Statement::Remember(vec![Field::SourceAddress], "seen".into(), 60)]),
            Rule::new([Statement::InSet(vec![Field::SourceAddress], "seen".into()), Statement::Dnat(targets.to_vec())]),
        ],
    );
    rules.chain(
        "filter",
        hook(HookKind::Filter, HookPoint::Output, 0),
        vec![
            Rule::new([
                Statement::NotIn(Field::DestinationAddress, "127.0.0.0".parse().unwrap(), 8),
                Statement::Map(tuple, "empty".into()),
            ]),
            Rule::new([
                Statement::Is(Field::OutputLink, b"l".to_vec()),
                Statement::HasBits(Field::ConnectionStatus, nft::ct_status::DNAT),
                Statement::Mark { keep: !0x4000, flip: 0x4000 },
                Statement::HasBits(Field::Mark, 0x4000),
                Statement::Is(Field::DestinationType, nft::LOCAL.to_ne_bytes().to_vec()),
            ]),
        ],
    );
    rules.chain(
        "reject",
        None,
        vec![
            Rule::new([Statement::Is(Field::Protocol, vec![6]), Statement::Reject(Reject::TcpReset)]),
            Rule::new([Statement::Reject(Reject::PortUnreachable)]),
        ],
    );
    rules.chain(
        "postrouting",
        hook(HookKind::Nat, HookPoint::Postrouting, 100),
        vec![Rule::new([Statement::HasBits(Field::Mark, 0x4000), Statement::Masquerade])],
    );
    rules
}

/// A server on a loopback address that answers each connection with the address.
fn serve(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let local = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(local.ip().to_string().as_bytes());
        }
    });
    local.port()
}

fn ask(address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn translates_chooses_and_rejects() {
    isolate();
    let kernel = Kernel::open().unwrap();
    let (one, two) = (serve("127.0.0.2"), serve("127.0.0.3"));
    own_network_on_loopback();
    assert!(ask("10.0.0.1:80").is_err());
    own_network_on_loopback();
    let rules = service(&[target("127.0.0.2", one)]);
    kernel.apply(None, &rules).unwrap();
    assert_eq!(ask("10.0.0.1:80").unwrap(), "127.0.0.2");
    assert_eq!(ask("10.0.0.2:80").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
    udp.connect("10.0.0.2:80").unwrap();
    // Sending fails as for any packet that does not leave; what matters is the answer that follows.
    let _ = udp.send(b"x");
    udp.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);

    // Both targets are chosen sooner or later; this fails once in 2^64 runs.
    let both = service(&[target("127.0.0.2", one), target("127.0.0.3", two)]);
    kernel.apply(Some(&rules), &both).unwrap();
    let answers: std::collections::BTreeSet<_> = (0..64).map(|_| ask("10.0.0.1:80").unwrap()).collect();
    assert_eq!(answers.len(), 2);

    // The difference can take things away as well.
    let mut fewer = both.clone();
    if let Some(Set { elements: Elements::Verdicts(verdicts), .. }) = fewer.sets.get_mut("services") {
        verdicts.clear();
    }
    fewer.chains.remove("service");
    fewer.sets.remove("seen");
    kernel.apply(Some(&both), &fewer).unwrap();
    assert!(ask("10.0.0.1:80").is_err());
    kernel.apply(Some(&fewer), &rules).unwrap();
    assert_eq!(ask("10.0.0.1:80").unwrap(), "127.0.0.2");
    assert!(kernel.delete(Family::Ip, "test").unwrap());
    assert!(!kernel.delete(Family::Ip, "test").unwrap());
}

#[test]
fn chains_at_random_and_ipv6() {
    isolate();
    let kernel = Kernel::open().unwrap();
    let mut rules = RuleSet::new(Family::Ip6, "test6", "");
    let hook = Some(Hook { kind: HookKind::Nat, point: HookPoint::Output, priority: -100 });
    rules.chain("output", hook, vec![Rule::new([Statement::GotoRandom(vec!["a".into(), "b".into()])])]);
    rules.chain("a", None, vec![Rule::new([Statement::Dnat(vec![target("::1", 1), target("fd00::2", 2)])])]);
    let range = Statement::In(Field::SourceAddress, "fd00::".parse().unwrap(), 12);
    rules.chain("b", None, vec![Rule::new([range, Statement::Verdict(Verdict::Return)])]);
    kernel.apply(None, &rules).unwrap();
    kernel.apply(Some(&rules), &rules).unwrap();
    kernel.apply(None, &rules).unwrap();
}

#[test]
fn ten_thousand_elements_and_a_failure_that_changes_nothing() {
    isolate();
    let kernel = Kernel::open().unwrap();
    let mut rules = service(&[target("127.0.0.2", 1)]);
    if let Some(Set { elements: Elements::Verdicts(verdicts), .. }) = rules.sets.get_mut("services") {
        for port in 1..10_000 {
            verdicts.insert(key("10.0.0.9", 6, port), Verdict::Goto("service".into()));
        }
    }
    kernel.apply(None, &rules).unwrap();
    let mut wrong = rules.clone();
    let jump = Statement::Verdict(Verdict::Jump("missing".into()));
    wrong.chain("service", None, vec![Rule::default(), Rule::new([jump]).comment("to nowhere")]);
    let error = kernel.apply(Some(&rules), &wrong).unwrap_err();
    assert!(error.to_string().contains("rule 2 of chain service (to nowhere)"), "{error}");
    assert!(error.is_absent());
    // The table is as it was: the difference from it applies.
    kernel.apply(Some(&rules), &service(&[target("127.0.0.2", 1)])).unwrap();
}

#[test]
fn forgets_connections() {
    isolate();
    let kernel = Kernel::open().unwrap();
    own_network_on_loopback();
    let server = UdpSocket::bind("127.0.0.2:0").unwrap();
    let port = server.local_addr().unwrap().port();
    kernel.apply(None, &service(&[target("127.0.0.2", port)])).unwrap();
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    client.send_to(b"x", "10.0.0.1:80").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    server.recv(&mut [0; 8]).unwrap();
    let to = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        kernel.forget_connections(&|flow| flow.protocol == 17 && flow.reply_source == address).unwrap()
    };
    assert_eq!(to("127.0.0.9"), 0);
    assert_eq!(to("127.0.0.2"), 1);
    assert_eq!(to("127.0.0.2"), 0);
}

#[test]
fn the_fake_refuses_what_the_kernel_would() {
    let fake = Fake::new();
    let mut rules = service(&[target("127.0.0.2", 1)]);
    fake.apply(None, &rules).unwrap();
    rules.chain("service", None, vec![Rule::new([Statement::Dnat(vec![target("::1", 1)])])]);
    assert!(fake.apply(None, &rules).is_err());
}

/// Makes all of 10.0.0.0/8 this machine's own.
fn own_network_on_loopback() {
    // SAFETY: the request struct is initialised and outlives the call.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo:1") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_addr.sa_family = libc::AF_INET as libc::sa_family_t;
        for (to, from) in request.ifr_ifru.ifru_addr.sa_data[2..].iter_mut().zip([10, 9, 9, 9]) {
            *to = from;
        }
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFADDR, &request), 0);
        libc::close(socket);
    }
}
