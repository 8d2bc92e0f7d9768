use super::*;

const WEB: &str = r#"
node = "a"
interfaces = ["eth1", { name = "eth2", xdp_mode = "skb" }]

[timeouts]
established = "10m"

[egress]
prefixes = ["10.0.0.0/16", { prefix = "10.0.1.0/24", interface = "eth0" }, "2001:db8:b::/64"]

[[service]]
name = "web"
address = "203.0.113.10"
port = 80

[service.timeouts]
udp = "1m"

[[service.backend]]
address = "10.0.1.5:8080"
weight = 2

[[service.backend]]
address = "10.0.1.6:8080"
state = "draining"

[[service]]
name = "dns"
addresses = [{ node = "a", address = "2001:db8::a" }, { node = "b", address = "2001:db8::b" }]
port = 53
protocol = "udp"
mode = "dsr-l2"
slots = 251

[[service.backend]]
address = "2001:db8:1::5"
"#;

const TUNNEL: &str = r#"
[tunnel]
source4 = "10.0.0.1"
source_prefix6 = "fd00:99::/64"
gue_port = 7000

[[service]]
name = "far"
address = "203.0.113.10"
port = 80
mode = "dsr-gue"

[[service.backend]]
address = "10.0.1.5"

[[service.backend]]
address = "2001:db8:1::5"
"#;

fn raw(text: &str) -> RawConfig {
    RawConfig::from_toml(text, "lb.toml").unwrap()
}

fn refusal(text: &str) -> String {
    let error = match RawConfig::from_toml(text, "lb.toml") {
        Ok(raw) => Config::check(&raw).expect_err(text),
        Err(error) => error,
    };
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

#[test]
fn a_file_means_what_it_says() {
    let config = Config::check(&raw(WEB)).unwrap();
    let [web, dns] = &*config.services else {
        panic!("{config:?}");
    };
    assert_eq!(web.places(), ["203.0.113.10:80/tcp"]);
    assert_eq!((web.mode, web.algorithm), (Mode::Nat, Algorithm::Maglev));
    assert_eq!(web.slots, 65_537);
    assert_eq!(web.timeouts.established, Duration::from_secs(600));
    assert_eq!(web.timeouts.udp, Duration::from_secs(60));
    assert_eq!((web.backends[0].weight, web.backends[1].weight), (2, 1));
    assert_eq!(web.backends[1].state, State::Draining);
    assert_eq!(dns.places(), ["[2001:db8::a]:53/udp"]);
    assert_eq!(
        dns.backends[0].address,
        "[2001:db8:1::5]:53".parse().unwrap()
    );
    assert_eq!(config.interfaces[1].xdp_mode, XdpMode::Skb);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn in_a_tunnel_backends_may_be_of_the_other_family() {
    for mode in ["dsr-gue", "dsr-ipip"] {
        let config = Config::check(&raw(&TUNNEL.replace("dsr-gue", mode))).unwrap();
        let families: Vec<bool> = config.services[0]
            .backends
            .iter()
            .map(|b| b.address.is_ipv4())
            .collect();
        assert_eq!(families, [true, false]);
        assert_eq!(config.settings().tunnel.gue_port.number(), 7000);
    }
    for mode in ["nat", "dsr-l2"] {
        let line = refusal(&TUNNEL.replace("dsr-gue", mode));
        assert!(
            line.contains("make the service's mode dsr-ipip or dsr-gue"),
            "{line}"
        );
    }
}

#[test]
fn another_tunnel_is_told_in_a_line() {
    let old = Config::check(&raw(TUNNEL)).unwrap();
    let new = Config::check(&raw(&TUNNEL.replace("7000", "6080"))).unwrap();
    assert_eq!(
        differences(&old, &new),
        ["~ tunnel: source IPv4 10.0.0.1, IPv6 fd00:99::/64, GUE port 6080"]
    );
}

#[test]
fn what_is_exported_is_what_was_read() {
    for text in [WEB, TUNNEL] {
        let first = raw(text);
        assert_eq!(raw(&first.to_toml()), first);
    }
    assert_eq!(raw(""), RawConfig::default());
}

#[test]
fn every_mistake_has_its_line() {
    let service = |rest: &str| format!("[[service]]\nname = \"web\"\nport = 80\n{rest}");
    let at = |rest: &str| service(&format!("address = \"203.0.113.10\"\n{rest}"));
    let backend = |rest: &str| at(&format!("[[service.backend]]\n{rest}"));
    let cases = [
        (
            "tcpport = 1".to_owned(),
            "lb.toml:1: unknown field `tcpport`",
        ),
        (at("algorithm = \"luck\""), "unknown variant `luck`"),
        (
            at("timeouts = { udp = \"soon\" }"),
            "\"soon\" is no length of time",
        ),
        (at("timeouts = { udp = \"1ms\" }"), "timeout udp is 1ms"),
        (service(""), "has no address"),
        (
            service("address = \"10.0.0.300\""),
            "\"10.0.0.300\" is no IP address",
        ),
        (service("address = \"127.0.0.1\""), "loopback"),
        (service("address = \"224.0.0.1\""), "multicast"),
        (service("address = \"::\""), "unspecified"),
        (service("address = \"fe80::1\""), "link-local"),
        (service("address = \"::ffff:10.0.0.1\""), "write 10.0.0.1"),
        (
            service("addresses = [{ node = \"a\", address = \"10.0.0.1\" }]"),
            "say which this is",
        ),
        (
            format!(
                "node = \"b\"\n{}",
                service("addresses = [{ node = \"a\", address = \"10.0.0.1\" }]")
            ),
            "no address on this node, \"b\"",
        ),
        (
            service("addresses = [\"10.0.0.1\", \"2001:db8::1\"]"),
            "mixes IPv4 and IPv6",
        ),
        (
            at("addresses = [\"10.0.0.1\"]"),
            "both address and addresses",
        ),
        (
            at("").replace("port = 80", "port = 0"),
            "any port) is not supported yet",
        ),
        (at("").replace("\"web\"", "\"Web\""), "use 1 to 63 of a-z"),
        (format!("{}{}", at(""), at("")), "two services \"web\""),
        (
            format!("{}{}", at(""), at("").replace("\"web\"", "\"b\"")),
            "\"web\" and \"b\" both have 203.0.113.10 port 80/tcp",
        ),
        (
            at("slots = 100"),
            "100 slots are not a prime: use 97 or 101",
        ),
        (at("slots = 1"), "1 slots, needs from 2"),
        (
            backend("address = \"10.0.1.5:x\""),
            "is no address with a port",
        ),
        (backend("address = \"10.0.1.5:0\""), "port 0"),
        (
            backend("address = \"10.0.1.5:70000\""),
            "is no address with a port",
        ),
        (
            backend("address = \"10.0.1.5\"\nweight = 0"),
            "have weight 0",
        ),
        (
            backend("address = \"10.0.1.5\"\nweight = 65536"),
            "lb.toml:7",
        ),
        (
            backend("address = \"[2001:db8::5]:80\""),
            "not of the family of the service's address 203.0.113.10",
        ),
        (
            backend("address = \"203.0.113.10:8080\""),
            "address of service \"web\" itself",
        ),
        (
            backend("address = \"10.0.1.5:80\"\n[[service.backend]]\naddress = \"10.0.1.5\""),
            "10.0.1.5:80 twice",
        ),
        (
            backend("address = \"10.0.1.5:81\"")
                .replace("port = 80", "port = 80\nmode = \"dsr-l2\""),
            "dsr-l2 cannot change the port: write port 80 or none",
        ),
        (
            backend("address = \"10.0.1.5:81\"")
                .replace("port = 80", "port = 80\nmode = \"dsr-gue\""),
            "dsr-gue cannot change the port: write port 80 or none",
        ),
        (
            backend("address = \"10.0.1.5:80\"\nstate = \"off\""),
            "unknown variant `off`",
        ),
        ("sizes = { flows = 0 }".to_owned(), "[sizes] flows = 0"),
        ("sizes = { event_bytes = 5000 }".to_owned(), "power of two"),
        (
            format!(
                "sizes = {{ services = 2 }}\n{}{}",
                at(""),
                at("").replace("web", "b").replace(".10\"", ".11\"")
            ),
            "2 services, but [sizes] services = 2 has room for 1",
        ),
        (
            "interfaces = [\"a/b\"]".to_owned(),
            "cannot be the name of an interface",
        ),
        (
            "interfaces = [\"eth1\", \"eth1\"]".to_owned(),
            "named twice",
        ),
        (
            "interfaces = [3]".to_owned(),
            "an interface is a name, or {",
        ),
    ];
    for (text, expected) in cases {
        let line = refusal(&text);
        assert!(line.contains(expected), "{line:?} lacks {expected:?}");
    }
}

fn sharing(services: u8) -> String {
    (0..services)
        .map(|n| {
            format!(
                "[[service]]\nname = \"s{n}\"\naddress = \"10.9.0.{}\"\nport = 80\n\
                 [[service.backend]]\naddress = \"10.0.1.5:80\"\n",
                n + 1
            )
        })
        .collect()
}

#[test]
fn a_shared_backend_is_warned_of_and_refused_where_the_way_back_gives_up() {
    let config = Config::check(&raw(&sharing(2))).unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("10.0.1.5:80/tcp is shared by s0 and s1"));
    assert!(Config::check(&raw(&sharing(8))).is_ok());
    assert!(refusal(&sharing(9)).contains("shared by 9 nat services, at most 8"));
}

/// `edit` made on [`WEB`]: the lines of what it changes, or the error.
fn edited(edit: &Edit) -> Result<Vec<String>, Error> {
    let before = raw(WEB);
    let mut after = before.clone();
    edit.apply(&mut after)?;
    Ok(differences(
        &Config::check(&before)?,
        &Config::check(&after)?,
    ))
}

#[test]
fn edits_change_what_they_say() {
    let service = || "web".to_owned();
    let backend = |address: &str, weight, set: fn(RawBackendEdit) -> Edit| {
        set((service(), address.to_owned(), weight))
    };
    type RawBackendEdit = (String, String, Option<u16>);
    let add = |(service, address, weight): RawBackendEdit| Edit::BackendAdd {
        service,
        backend: raw::RawBackend {
            address,
            weight,
            state: None,
        },
    };
    let set = |(service, address, weight): RawBackendEdit| Edit::BackendSet {
        service,
        address,
        set: BackendSet {
            weight,
            state: None,
        },
    };
    assert_eq!(
        edited(&backend("10.0.1.7:8080", Some(3), add)).unwrap(),
        ["+ backend 10.0.1.7:8080 to web (weight 3)"]
    );
    assert!(matches!(
        edited(&backend("10.0.1.5:8080", None, add)),
        Err(Error::BackendExists { .. })
    ));
    assert_eq!(
        edited(&backend("10.0.1.5", Some(7), set)).unwrap(),
        ["~ backend 10.0.1.5:8080 of web: weight 2 -> 7"]
    );
    assert!(matches!(
        edited(&backend("10.0.1.5:8080", None, set)),
        Err(Error::NothingToSet { .. })
    ));
    assert_eq!(
        edited(&backend("10.0.1.9:8080", Some(1), set))
            .unwrap_err()
            .to_string(),
        "service \"web\" has no backend 10.0.1.9:8080: it has 10.0.1.5:8080, 10.0.1.6:8080"
    );
    assert_eq!(
        edited(&Edit::ServiceDel {
            service: "[2001:db8::a]:53/udp".to_owned()
        })
        .unwrap(),
        ["- service dns at [2001:db8::a]:53/udp"]
    );
    assert_eq!(
        edited(&Edit::ServiceDel {
            service: "wob".to_owned()
        })
        .unwrap_err()
        .to_string(),
        "there is no service \"wob\": there are web, dns"
    );
    assert_eq!(
        edited(&Edit::ServiceSet {
            service: service(),
            set: ServiceSet {
                algorithm: Some(Algorithm::RoundRobin),
                add_addresses: vec!["203.0.113.11".to_owned()],
                ..ServiceSet::default()
            }
        })
        .unwrap(),
        [
            "~ service web: address 203.0.113.10:80/tcp -> 203.0.113.10:80/tcp, \
             203.0.113.11:80/tcp, algorithm maglev -> round-robin"
        ]
    );
    assert!(matches!(
        edited(&Edit::ServiceSet {
            service: service(),
            set: ServiceSet {
                remove_addresses: vec!["203.0.113.10".to_owned()],
                ..ServiceSet::default()
            }
        }),
        Err(Error::LastAddress { .. })
    ));
}

#[test]
fn a_file_without_interfaces_leaves_them_attached() {
    let lines = edited(&Edit::Replace {
        config: RawConfig {
            node: Some("a".to_owned()),
            ..RawConfig::default()
        },
    })
    .unwrap();
    assert_eq!(
        lines,
        [
            "- egress 2001:db8:b::/64 out of the default route",
            "- egress 10.0.1.0/24 out of eth0",
            "- egress 10.0.0.0/16 out of the default route",
            "- service web at 203.0.113.10:80/tcp",
            "- service dns at [2001:db8::a]:53/udp"
        ]
    );
}

#[test]
fn a_service_gets_a_name_from_its_place() {
    for (place, name) in [
        ("203.0.113.10:80/tcp", "203-0-113-10-80-tcp"),
        ("[2001:db8::10]:53/udp", "2001-db8--10-53-udp"),
        ("10.0.0.1:443/tcp", "10-0-0-1-443-tcp"),
    ] {
        let endpoint: ServiceEndpoint = place.parse().unwrap();
        assert_eq!(endpoint.name(), name);
        assert_eq!(endpoint.to_string(), place);
    }
    for wrong in [
        "203.0.113.10",
        "203.0.113.10:80",
        "203.0.113.10:80/sctp",
        "web:80",
        "[::1]:x/tcp",
    ] {
        assert!(wrong.parse::<ServiceEndpoint>().is_err(), "{wrong}");
    }
}

#[test]
fn of_two_egress_prefixes_the_longer_counts() {
    let config = Config::check(&raw(WEB)).unwrap();
    let words: Vec<String> = config.egress.iter().map(Egress::to_string).collect();
    assert_eq!(
        words,
        [
            "2001:db8:b::/64 out of the default route",
            "10.0.1.0/24 out of eth0",
            "10.0.0.0/16 out of the default route",
        ]
    );
}

#[test]
fn an_egress_prefix_that_cannot_be_meant_is_refused() {
    let refused = |prefixes: &str| refusal(&format!("[egress]\nprefixes = [{prefixes}]"));
    let cases = [
        (
            "\"ten\"",
            "\"ten\" is no prefix: write 10.0.1.0/24 or 2001:db8:1::/64",
        ),
        (
            "\"10.0.1.5/24\"",
            "10.0.1.5/24 is an address within a prefix: write 10.0.1.0/24 for all of it, or \
             10.0.1.5/32",
        ),
        (
            "\"0.0.0.0/0\"",
            "egress 0.0.0.0/0 is every address, the clients' too: give the backends' networks",
        ),
        (
            "\"::/0\"",
            "egress ::/0 is every address, the clients' too: give the backends' networks",
        ),
        (
            "\"127.0.0.0/8\"",
            "egress 127.0.0.0/8 is loopback: give the backends' networks",
        ),
        (
            "\"10.0.1.0/24\", { prefix = \"10.0.1.0/24\", interface = \"eth0\" }",
            "egress 10.0.1.0/24 is there twice: remove one",
        ),
        (
            "{ prefix = \"10.0.1.0/24\", interface = \"eth*\" }",
            "egress out of \"eth*\": nftables rules name interfaces with letters, digits and \
             _.-@+ only",
        ),
    ];
    for (written, line) in cases {
        assert_eq!(refused(written), line);
    }
}

#[test]
fn egress_edits_add_change_and_remove_prefixes() {
    let prefix = |interface: Option<&str>| egress::RawPrefix {
        prefix: "10.0.1.0/24".into(),
        interface: interface.map(str::to_owned),
    };
    let mut raw = RawConfig::default();
    for interface in [None, Some("eth1")] {
        let egress = prefix(interface);
        Edit::EgressAdd { egress }.apply(&mut raw).unwrap();
        assert_eq!(raw.egress.prefixes, [prefix(interface)]);
    }
    let del = |prefix: &str| Edit::EgressDel {
        prefix: prefix.into(),
    };
    let error = del("10.0.2.0/24").apply(&mut raw).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no egress for 10.0.2.0/24: there is 10.0.1.0/24"
    );
    del("10.0.1.0/24").apply(&mut raw).unwrap();
    assert_eq!(raw, RawConfig::default());
}
