//! What a crash in the middle of making or deleting an endpoint left on the node.

use crate::endpoint::{HOST_PREFIX, endpoint_devices};
use crate::error::{Errors, missing_is_fine};
use crate::node::{ROUTER_DEVICE, ROUTER_PEER};
use crate::rtnl::{Link, PROTOCOL, Rtnl};

/// Removes devices, routes and neighbours of endpoints that nobody claims: devices with the mark of endpoints, those that
/// `is_ours` knows though a crash came before the mark, and what the node has of us on devices of others. `claimed` are
/// the indices of endpoints' devices. Goes on past errors; returns what was removed, and them.
pub fn remove_left_over(claimed: &[u32], is_ours: impl Fn(&Link) -> bool) -> (Vec<String>, Errors) {
    let (mut removed, mut errors) = (Vec::new(), Errors::default());
    if let Err(error) = remove(claimed, is_ours, &mut removed, &mut errors) {
        errors.note(Err(error));
    }
    (removed, errors)
}

fn remove(
    claimed: &[u32],
    is_ours: impl Fn(&Link) -> bool,
    removed: &mut Vec<String>,
    errors: &mut Errors,
) -> Result<(), crate::NetError> {
    let mut host = Rtnl::open()?;
    let marked: Vec<u32> = endpoint_devices()?.iter().map(|(link, _)| link.index).collect();
    let links = host.links()?;
    let (ours, others): (Vec<&Link>, Vec<&Link>) = links
        .iter()
        .filter(|link| !claimed.contains(&link.index) && ![ROUTER_DEVICE, ROUTER_PEER].contains(&&*link.name))
        .partition(|link| marked.contains(&link.index) || is_unmarked(link) && is_ours(link));
    for link in ours {
        removed.push(format!("device {}", link.name));
        errors.note(missing_is_fine(host.delete_link(link.index)));
    }
    let routes = host.routes()?;
    for link in others {
        for route in routes.iter().filter(|route| route.protocol == PROTOCOL && route.uses(link.index)) {
            removed.push(format!("route to {} by {}", route.destination, link.name));
            errors.note(missing_is_fine(host.delete_route(route)));
        }
        for neighbour in host.neighbours(link.index)?.iter().filter(|neighbour| neighbour.ours) {
            removed.push(format!("neighbour {} on {}", neighbour.ip, link.name));
            errors.note(missing_is_fine(host.delete_neighbour(link.index, neighbour.ip)));
        }
    }
    Ok(())
}

/// A veth that is called as an endpoint's host side and has no mark yet.
fn is_unmarked(link: &Link) -> bool {
    link.kind.as_deref() == Some("veth") && link.alias.is_none() && link.name.starts_with(HOST_PREFIX)
}
