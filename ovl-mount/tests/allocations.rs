//! A plan allocates what it gives, and nothing else for each lower layer. A program of its own,
//! since it counts for all of its process.

use ovl_layout::{LINK_ID_ENTROPY, LayerId, Layout, LinkId, LowerChain};
use ovl_mount::{Access, DataLimit, MountFeatures, OverlaySpec, Strategy};

fn link(index: usize) -> LinkId {
    let mut entropy = [0; LINK_ID_ENTROPY];
    entropy[..8].copy_from_slice(&(index as u64).to_be_bytes());
    LinkId::from_entropy(entropy)
}

/// Allocations of a plan with so many lower layers.
fn allocations(strategy: Strategy, home: &str, access: Access, lowers: usize) -> u64 {
    let features = MountFeatures::new(DataLimit::for_page_size(1 << 20))
        .layers_by_fd(true)
        .lowerdir_plus(true)
        .index(true);
    let chain: LowerChain = (0..lowers).map(link).collect();
    let id = |index: usize| -> Option<LayerId> { format!("{index:064x}").parse().ok() };
    let ids: Vec<LayerId> = (0..lowers).filter_map(id).collect();
    let (Some(top), layout) = (id(usize::MAX), Layout::new(home)) else {
        panic!("64 digits are an id");
    };
    let spec = OverlaySpec::new(&top, &chain, access)
        .lower_ids(&ids)
        .strategy(Some(strategy));
    let mut planned = None;
    let counted = allocation_counter::measure(|| planned = Some(spec.plan(&layout, &features)));
    assert!(planned.is_some_and(|plan| plan.is_ok()), "{strategy}");
    counted.count_total
}

#[test]
fn a_lower_layer_costs_one_allocation_where_it_is_given_alone_and_none_in_a_string() {
    let deep = "/a".repeat(120);
    for home in ["/var/lib/docker/overlay2", r"/with:two,odd\bytes", &deep] {
        for access in [Access::Writable, Access::ReadOnly] {
            for strategy in Strategy::ALL {
                let few = allocations(strategy, home, access, 10);
                let many = allocations(strategy, home, access, 410);
                let each = match strategy {
                    Strategy::LayersByFd | Strategy::LowerdirPlus => 1,
                    _ => 0,
                };
                assert_eq!(many - few, 400 * each, "{strategy} in {home}");
                assert!(few < 32 + 10 * each, "{strategy} in {home}: {few}");
            }
        }
    }
}
