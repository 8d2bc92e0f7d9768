//! Attaching: foreign programs, fallback, interfaces that come back.

use anyhow::{Context, Result, bail, ensure};
use lb_user::{
    kernel::{Kernel, Options, XdpMode},
    network::XdpPlace,
};

use crate::rig::Rig;

#[test]
fn a_foreign_program_is_refused_by_id_and_name() -> Result<()> {
    let rig = Rig::create()?;
    let (mut theirs, _) = Kernel::open(&Options {
        pins: rig.other_pins(),
        ..rig.options()
    })?;
    rig.attach(&mut theirs, "e1", XdpMode::Auto)?;
    let id = theirs.program_id()?;

    let (mut kernel, _) = rig.open()?;
    let Err(error) = rig.attach(&mut kernel, "e1", XdpMode::Auto) else {
        bail!("a foreign program was replaced");
    };
    let line = format!("{error:#}");
    ensure!(line.contains(&format!("XDP program {id} (lb)")), "{line}");
    ensure!(rig.link("e1")?.xdp.is_some_and(|xdp| xdp.program == id));
    ensure!(kernel.attached()?.is_empty() && kernel.interface_counters()?.is_empty());
    Ok(())
}

#[test]
fn where_the_driver_refuses_the_stack_takes_over_and_says_why() -> Result<()> {
    let rig = Rig::create()?;
    rig.lb.ip("link add br0 type bridge\nlink set br0 up")?;
    rig.add_veth("e2", "10.8.2")?;
    rig.peer.ip("link set e2 mtu 9000")?;
    rig.lb.ip("link set e2 mtu 9000")?;
    let (mut kernel, _) = rig.open()?;
    for (name, reason) in [("br0", "does not know XDP"), ("e2", "MTU (9000)")] {
        let Err(error) = rig.attach(&mut kernel, name, XdpMode::Driver) else {
            bail!("the driver of {name} took it");
        };
        ensure!(format!("{error:#}").contains(reason), "{error:#}");
        ensure!(kernel.attached()?.is_empty());

        let attached = rig.attach(&mut kernel, name, XdpMode::Auto)?;
        ensure!(attached.place == XdpPlace::Skb, "{attached:?}");
        let why = attached.fallback.context("no reason given")?;
        ensure!(why.contains(reason), "{why}");
        ensure!(rig.link(name)?.xdp.map(|xdp| xdp.place) == Some(XdpPlace::Skb));
        ensure!(kernel.detach(name)?);
    }

    // From one place to another, when asked for.
    rig.attach(&mut kernel, "e1", XdpMode::Skb)?;
    let same = rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    ensure!(same.place == XdpPlace::Skb, "{same:?}");
    rig.attach(&mut kernel, "e1", XdpMode::Driver)?;
    ensure!(rig.link("e1")?.xdp.map(|xdp| xdp.place) == Some(XdpPlace::Driver));
    Ok(())
}

#[test]
fn an_interface_that_is_re_created_or_renamed_is_followed() -> Result<()> {
    let rig = Rig::create()?;
    let (mut kernel, _) = rig.open()?;
    rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    let first = rig.link("e1")?.index;

    rig.lb.ip("link del e1")?;
    let gone = kernel.attached()?;
    ensure!(
        gone.len() == 1 && gone[0].name == "e1" && gone[0].ifindex == 0,
        "{gone:?}"
    );
    rig.add_veth("e1", "10.8.0")?;
    rig.attach(&mut kernel, "e1", XdpMode::Auto)?;
    let link = rig.link("e1")?;
    ensure!(link.index != first);
    ensure!(kernel.attached()?[0].ifindex == link.index);
    rig.ping("10.8.0.1")?;
    ensure!(kernel.interface_counters()?.contains_key(&link.index));

    // A dot in the name, which a bpffs does not take.
    rig.lb
        .ip("link set e1 down\nlink set e1 name e1.7\nlink set e1.7 up")?;
    rig.attach(&mut kernel, "e1.7", XdpMode::Auto)?;
    let attached = kernel.attached()?;
    ensure!(
        attached.len() == 1 && attached[0].name == "e1.7",
        "{attached:?}"
    );
    ensure!(attached[0].ifindex == link.index);

    // The old interface's counters go when the next agent looks.
    drop(kernel);
    let (mut kernel, _) = rig.open()?;
    let counted: Vec<u32> = kernel.interface_counters()?.into_keys().collect();
    ensure!(counted == [link.index], "{counted:?}");
    ensure!(kernel.detach("e1.7")? && !kernel.detach("e1.7")?);
    ensure!(rig.link("e1.7")?.xdp.is_none());
    ensure!(kernel.interface_counters()?.is_empty());
    Ok(())
}
