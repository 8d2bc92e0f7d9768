//! Interfaces and neighbours that change under the load balancer are followed.

use anyhow::Result;
use lb_tests::{
    agent::has_program,
    scene::{Mode, Scene},
    topology::{
        Arms::Two,
        Family::{V4, V6},
    },
    wait,
};

/// New conversations work again within the time that a test waits.
fn works_again(scene: &Scene) -> Result<()> {
    wait::until_true("an answer through the service", wait::LONG, || {
        Ok(scene
            .conversation()
            .and_then(|mut it| it.ask("again"))
            .is_ok())
    })
}

#[test]
fn a_backend_with_a_new_mac_address_is_followed() -> Result<()> {
    for mode in [Mode::Nat, Mode::DsrL2] {
        let scene = Scene::build(mode, Two, V4, &[1])?;
        scene.conversation()?.ask("before")?;
        let backend = &scene.network.backends[0].netns;
        // It tells its neighbours, as network managers do.
        backend.set_sysctls(&[("net/ipv4/conf/eth0/arp_notify", "1")])?;
        backend.ip("link set eth0 address 02:00:00:00:00:42")?;
        works_again(&scene)?;
    }
    Ok(())
}

#[test]
fn an_interface_that_goes_down_and_up_is_followed() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let netns = &scene.network.balancer.netns;
    for device in ["eth0", "eth1"] {
        netns.ip(&format!("link set {device} down"))?;
        netns.ip(&format!("link set {device} up"))?;
        works_again(&scene)?;
    }
    Ok(())
}

#[test]
fn an_interface_with_a_new_mac_address_or_mtu_is_followed() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V6, &[1])?;
    let netns = &scene.network.balancer.netns;
    netns.ip("link set eth1 address 02:00:00:00:00:43")?;
    works_again(&scene)?;
    netns.ip("link set eth1 mtu 1400")?;
    works_again(&scene)
}

#[test]
fn an_interface_that_is_made_anew_is_attached_again() -> Result<()> {
    let scene = Scene::build(Mode::Nat, Two, V4, &[1])?;
    let netns = &scene.network.balancer.netns;
    scene.network.make_inner_anew()?;
    wait::until_true("the program on the new eth1", wait::LONG, || {
        has_program(netns, "eth1")
    })?;
    works_again(&scene)
}
