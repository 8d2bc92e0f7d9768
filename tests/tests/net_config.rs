//! Configuration by command line and by file: what is wrong is refused whole, what is right takes
//! effect, and what runs can be exported and applied again.

use anyhow::Result;
use lb_tests::{
    claims::under_load,
    scene::{Mode, Scene},
    topology::{
        Arms::Two,
        Family::{V4, V6},
    },
};

/// Refused commands beside a scene with services `web` and `dns`, and a word that the refusal has.
const WRONG: &[(&str, &str)] = &[
    // addresses, ports, protocols
    ("service add 203.0.113.300:80/tcp --name x", "203.0.113.300"),
    ("service add 203.0.113.10:80 --name x", "203.0.113.10:80"),
    ("service add 203.0.113.10:80/sctp --name x", "sctp"),
    ("service add 203.0.113.10:65536/tcp --name x", "65536"),
    ("service add 203.0.113.10/tcp --name x", "203.0.113.10/tcp"),
    (
        "service add 2001:db8::10:80/tcp --name x",
        "2001:db8::10:80/tcp",
    ),
    ("service add 224.0.0.1:80/tcp --name x", "224.0.0.1"),
    ("service add 0.0.0.0:80/tcp --name x", "0.0.0.0"),
    (
        "service add [::ffff:192.0.2.1]:80/tcp --name x",
        "192.0.2.1",
    ),
    ("backend add web 10.0.1.300:80", "10.0.1.300"),
    ("backend add web 10.0.1.5:0", "0"),
    ("backend add web [2001:db8:b::11]:80", "2001:db8:b::11"),
    ("backend add web 203.0.113.10:7000", "203.0.113.10"),
    // names
    ("service add 203.0.113.11:80/tcp --name web", "web"),
    (
        "service add 203.0.113.11:80/tcp --name Not_A_Name",
        "Not_A_Name",
    ),
    (
        "service add 203.0.113.10:7000/tcp --name twice",
        "203.0.113.10",
    ),
    ("service del nothing", "nothing"),
    ("service set nothing --algorithm maglev", "nothing"),
    ("backend add nothing 10.0.1.5:80", "nothing"),
    ("backend del web 10.0.1.99:80", "10.0.1.99"),
    ("backend set web 10.0.1.99:80 --weight 2", "10.0.1.99"),
    ("backend add web 10.0.1.11:7001", "10.0.1.11"),
    // values
    (
        "service add 203.0.113.11:80/tcp --name x --mode warp",
        "warp",
    ),
    (
        "service add 203.0.113.11:80/tcp --name x --algorithm dice",
        "dice",
    ),
    ("backend add web 10.0.1.5:80 --weight -1", "-1"),
    ("backend add web 10.0.1.5:80 --weight 70000", "70000"),
    ("backend add web 10.0.1.5:80 --weight many", "many"),
    ("backend set web 10.0.1.11:7001 --state asleep", "asleep"),
    ("backend set web 10.0.1.11:7001 --weight 0", "weight"),
    ("backend set web 10.0.1.11:7001", "weight"),
    // words
    ("service add 203.0.113.11:80/tcp --nmae x", "--nmae"),
    ("sevrice list", "sevrice"),
    ("status -o xml", "xml"),
    ("apply -f /nowhere/lb.toml", "/nowhere/lb.toml"),
];

#[test]
fn what_is_wrong_is_refused_in_one_line_and_changes_nothing() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let agent = &scene.agent;
    let before = agent.configuration()?;
    under_load(&scene, || {
        for (line, object) in WRONG {
            let told = agent.refused(line)?;
            assert!(told.contains(object), "`{line}`: {told}");
            assert_eq!(agent.configuration()?, before, "`{line}` changed something");
        }
        Ok(())
    })?;
    Ok(())
}

/// Wrong files, each with a right part that must not take effect either, and a word of the refusal.
const WRONG_FILES: &[(&str, &str)] = &[
    ("this is not TOML", "asked.toml:1"),
    ("colour = 'red'", "colour"),
    (
        "[[service]]\nname = 'x'\naddress = '203.0.113.20'\nport = 80\ncolour = 'red'",
        "colour",
    ),
    (
        "[[service]]\nname = 'x'\naddress = '203.0.113.20'\nport = 'eighty'",
        "asked.toml:4",
    ),
    ("[[service]]\nname = 'x'\nport = 80", "x"),
    (
        "[[service]]\nname = 'x'\naddress = '203.0.113.20'\nport = 80\n\
         [[service]]\nname = 'x'\naddress = '203.0.113.21'\nport = 80",
        "x",
    ),
    (
        "[[service]]\nname = 'x'\naddress = '203.0.113.20'\nport = 80\nslots = 100",
        "101",
    ),
    (
        "[[service]]\nname = 'x'\naddress = '203.0.113.20'\nport = 80\n\
         [[service.backend]]\naddress = '10.0.1.11:80'\nweight = 0",
        "weight",
    ),
    (
        "[[service]]\nname = 'x'\naddress = '203.0.113.20'\nport = 80\nmode = 'dsr-l2'\n\
         [[service.backend]]\naddress = '10.0.1.11:81'",
        "10.0.1.11",
    ),
    ("[timeouts]\nestablished = '350'", "350"),
    ("[sizes]\nflows = 0", "flows"),
];

#[test]
fn a_wrong_file_leaves_the_old_configuration_running_whole() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let agent = &scene.agent;
    let before = agent.configuration()?;
    under_load(&scene, || {
        for (file, object) in WRONG_FILES {
            for flags in ["", "--dry-run"] {
                let told = agent.refused(&agent.apply_line(file, flags)?)?;
                assert!(told.contains(object), "{file}\n{told}");
                assert_eq!(agent.configuration()?, before, "{file}");
            }
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_file_takes_effect_and_a_dry_run_does_not() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1, 0])?;
    let agent = &scene.agent;
    let before = agent.configuration()?;
    let (first, second) = (scene.backend(0).to_string(), scene.backend(1).to_string());
    let asked = before.replace(&first, &second);
    assert_ne!(asked, before);

    let plan = agent.apply(&asked, "--dry-run")?;
    assert!(
        plan.contains(&second),
        "the plan does not name {second}:\n{plan}"
    );
    assert_eq!(agent.configuration()?, before);
    assert_eq!(scene.conversation()?.ask("who")?.server, "b1");

    let carried_out = agent.apply(&asked, "")?;
    let missing: Vec<&str> = plan
        .lines()
        .filter(|line| !carried_out.contains(line))
        .collect();
    assert!(
        missing.is_empty(),
        "planned, but not said: {missing:?}\n{carried_out}"
    );
    assert_eq!(agent.configuration()?, asked);
    agent.resolved()?;
    assert_eq!(scene.conversation()?.ask("who")?.server, "b2");
    assert_eq!(scene.datagrams()?.ask("who")?.server, "b2");
    Ok(())
}

#[test]
fn what_is_exported_can_be_applied_without_a_change() -> Result<()> {
    let scene = Scene::build(Mode::DsrL2, Two, V6, &[1, 3])?;
    let agent = &scene.agent;
    scene.change("set", 0, "--state draining")?;
    agent.ok("service set dns --algorithm source-hash")?;
    let before = agent.configuration()?;
    agent.apply(&before, "")?;
    assert_eq!(agent.configuration()?, before);

    // Everything away and back again.
    agent.apply("", "")?;
    assert!(!agent.configuration()?.contains("[[service]]"));
    assert!(agent.flows()?.is_empty());
    agent.apply(&before, "")?;
    assert_eq!(agent.configuration()?, before);
    agent.resolved()?;
    assert_eq!(scene.conversation()?.ask("who")?.server, "b2");
    Ok(())
}

#[test]
fn a_removed_service_passes_its_packets_again() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    scene.conversation()?.ask("who")?;
    scene.agent.ok("service del web")?;
    assert!(scene.conversation().is_err(), "the service is gone");
    // The other service of the same address still has it.
    scene.datagrams()?.ask("who")?;
    Ok(())
}
