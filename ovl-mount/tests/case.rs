//! Everything a plan depends on, generated, and the same arithmetic done a second way.

use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt as _;

use ovl_layout::{LayerId, Layout, LinkId, LowerChain};
use ovl_mount::{
    Access, DataLimit, MountFeatures, MountLabel, MountPlan, OverlayOptions, OverlaySpec,
    PlanError, Strategy,
};
use proptest::prelude::{BoxedStrategy, Just, Strategy as _, any, prop};
use proptest::{prop_compose, prop_oneof};

/// One wish: a layer, what is below it, and how it is to be mounted.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) home: Vec<u8>,
    pub(crate) id: LayerId,
    pub(crate) links: Vec<LinkId>,
    /// The ids of the links' layers, where they are known.
    pub(crate) ids: Option<Vec<LayerId>>,
    pub(crate) access: Access,
    /// Options as the command line writes them, each at most once.
    pub(crate) options: Vec<&'static str>,
    pub(crate) label: Option<MountLabel>,
    pub(crate) strategy: Option<Strategy>,
    pub(crate) page_size: usize,
    pub(crate) features: MountFeatures,
}

impl Case {
    pub(crate) fn plan(&self) -> Result<MountPlan, PlanError> {
        let layout = Layout::new(OsStr::from_bytes(&self.home));
        let chain: LowerChain = self.links.iter().copied().collect();
        let options = self
            .options
            .iter()
            .fold(OverlayOptions::default(), |options, word| {
                options.with(word).unwrap()
            });
        let mut spec = OverlaySpec::new(&self.id, &chain, self.access);
        if let Some(ids) = &self.ids {
            spec = spec.lower_ids(ids);
        }
        spec.options(options)
            .label(self.label.as_ref())
            .strategy(self.strategy)
            .plan(&layout, &self.features)
    }

    pub(crate) fn with_page_size(self, page_size: usize) -> Self {
        let features = MountFeatures::new(DataLimit::for_page_size(page_size))
            .layers_by_fd(self.features.layers_by_fd)
            .lowerdir_plus(self.features.lowerdir_plus)
            .index(self.features.index)
            .redirect_dir(self.features.redirect_dir)
            .metacopy(self.features.metacopy)
            .user_namespace(self.features.user_namespace);
        Self {
            page_size,
            features,
            ..self
        }
    }

    /// A path in the home, as bytes.
    pub(crate) fn in_home(&self, relative: &str) -> Vec<u8> {
        let slash: &[u8] = if self.home.ends_with(b"/") { b"" } else { b"/" };
        [&self.home, slash, relative.as_bytes()].concat()
    }

    /// The directories that the kernel is to stack, relative to the home, uppermost first.
    pub(crate) fn lowers(&self) -> Vec<String> {
        let own = match self.access {
            Access::ReadOnly => Some(format!("{}/diff", self.id)),
            Access::Writable => None,
        };
        let links = self.links.iter().map(|link| format!("l/{link}"));
        own.into_iter().chain(links).collect()
    }

    /// The same without links: what is opened for the kernel.
    pub(crate) fn lower_dirs(&self) -> Vec<String> {
        let own = (self.access == Access::ReadOnly).then_some(&self.id);
        let ids = own.into_iter().chain(self.ids.iter().flatten());
        ids.map(|id| format!("{id}/diff")).collect()
    }

    /// Upper and work directory, relative to the home.
    pub(crate) fn upper_and_work(&self) -> Option<[String; 2]> {
        match self.access {
            Access::Writable => Some([format!("{}/diff", self.id), format!("{}/work", self.id)]),
            Access::ReadOnly => None,
        }
    }

    /// The words of the options string in front of `lowerdir=`, in their order.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        let mut words = Vec::new();
        if self.features.index {
            words.push("index=off");
        }
        if self.features.user_namespace {
            words.push("userxattr");
        }
        for key in ["redirect_dir=", "metacopy=", "xino="] {
            words.extend(self.options.iter().filter(|word| word.starts_with(key)));
        }
        words.retain(|word| match *word {
            "redirect_dir=nofollow" => self.features.redirect_dir,
            "metacopy=off" => self.features.metacopy,
            _ => true,
        });
        if self.access == Access::Writable {
            words.extend(self.options.iter().filter(|word| **word == "volatile"));
        }
        words
    }

    /// Bytes in the `mount(2)` data string, by counting alone.
    pub(crate) fn data_len(&self, strategy: Strategy) -> usize {
        let special = |bytes: &[u8]| bytes.iter().filter(|byte| br"\,:".contains(byte)).count();
        // What stands in front of each relative path, escapes included.
        let prefix = match strategy {
            Strategy::MountRelative => 0,
            _ => self.in_home("").len() + special(&self.home),
        };
        let words: usize = self.words().iter().map(|word| word.len() + 1).sum();
        let lowers = self.lowers();
        let stack: usize = lowers.iter().map(|lower| prefix + lower.len()).sum();
        let upper = match self.access {
            Access::ReadOnly => 0,
            Access::Writable => {
                ",upperdir=/diff,workdir=/work".len() + 2 * (prefix + self.id.as_str().len())
            }
        };
        let label = match &self.label {
            None => 0,
            Some(label) => r#",context="""#.len() + label.as_str().len(),
        };
        words + "lowerdir=".len() + stack + lowers.len().saturating_sub(1) + upper + label
    }
}

prop_compose! {
    /// Any case: homes of any bytes, 0 to 520 layers, pages of 4 to 64 KiB, every strategy. In about
    /// half of the cases that need a page or more, the string ends within a byte of the page's end.
    pub(crate) fn case()(
        case in any_case(),
        edge in prop::option::weighted(0.7, 0..=2_usize),
        relative in any::<bool>(),
    ) -> Case {
        let strategy = match (case.strategy, relative) {
            (Some(strategy), _) => strategy,
            (None, true) => Strategy::MountRelative,
            (None, false) => Strategy::MountAbsolute,
        };
        let page_size = match edge {
            // 0: a byte too long; 1: fits; 2: a byte to spare.
            Some(edge) if !case.links.is_empty() => case.data_len(strategy) + edge,
            _ => case.page_size,
        };
        if PAGE_SIZES.contains(&page_size) { case.with_page_size(page_size) } else { case }
    }
}

const PAGE_SIZES: RangeInclusive<usize> = 4096..=65536;

prop_compose! {
    fn any_case()(
        home in home(),
        id in "[A-Za-z0-9][A-Za-z0-9_.-]{0,127}".prop_filter_map("reserved", |id| id.parse().ok()),
        links in links(),
        access in prop_oneof![Just(Access::Writable), Just(Access::ReadOnly)],
        options in options(),
        label in prop::option::weighted(0.3, label()),
        strategy in prop::option::of(prop::sample::select(Strategy::ALL.to_vec())),
        page_size in prop_oneof![Just(4096_usize), Just(16384), Just(65536), PAGE_SIZES],
        [layers_by_fd, lowerdir_plus, index, user_namespace, known] in any::<[bool; 5]>(),
        [redirect_dir, metacopy] in any::<[bool; 2]>(),
    ) -> Case {
        let features = MountFeatures::new(DataLimit::for_page_size(page_size))
            .layers_by_fd(layers_by_fd)
            .lowerdir_plus(lowerdir_plus)
            .index(index)
            .redirect_dir(redirect_dir)
            .metacopy(metacopy)
            .user_namespace(user_namespace);
        let ids = known.then(|| (0..links.len()).map(lower_id).collect());
        Case { home, id, links, ids, access, options, label, strategy, page_size, features }
    }
}

/// Absolute paths of any bytes but NUL, with many of those that mean something to the kernel.
fn home() -> BoxedStrategy<Vec<u8>> {
    let byte = || {
        prop_oneof![
            3 => prop::sample::select(br#"\,:/"= ."#.to_vec()),
            2 => b'a'..=b'z',
            1 => 1..=255_u8,
        ]
    };
    let path =
        |len| prop::collection::vec(byte(), len).prop_map(|tail| [b"/".as_slice(), &tail].concat());
    prop_oneof![
        1 => Just(b"/var/lib/docker/overlay2".to_vec()),
        4 => path(0..60),
        1 => path(60..300),
        // Where a link's absolute path has about 255 bytes, and likewise the layer's own.
        1 => path(220..230),
        1 => path(115..250),
        1 => path(300..4000),
    ]
    .boxed()
}

/// Distinct links: often about as many as fit 4 KiB, and often about as many as the kernel stacks.
fn links() -> BoxedStrategy<Vec<LinkId>> {
    let count = prop_oneof![
        1 => 0..=3_usize,
        2 => 4..=160_usize,
        2 => 0..=520_usize,
        1 => 497..=502_usize,
    ];
    (any::<u64>(), count)
        .prop_map(|(seed, count)| (0..count).map(|index| link(seed, index)).collect())
        .boxed()
}

/// A link id that differs from every other with the same seed.
pub(crate) fn link(seed: u64, index: usize) -> LinkId {
    let mut entropy = [0; 17];
    entropy[..8].copy_from_slice(&seed.to_be_bytes());
    entropy[8..16].copy_from_slice(&(index as u64).to_be_bytes());
    LinkId::from_entropy(entropy)
}

/// The id of a lower layer.
pub(crate) fn lower_id(index: usize) -> LayerId {
    format!("lower-{index}").parse().unwrap()
}

fn options() -> BoxedStrategy<Vec<&'static str>> {
    let one_of = |words: &'static [&'static str]| prop::option::of(prop::sample::select(words));
    (
        one_of(&[
            "redirect_dir=on",
            "redirect_dir=follow",
            "redirect_dir=nofollow",
        ]),
        one_of(&["metacopy=on", "metacopy=off"]),
        one_of(&["xino=on", "xino=off", "xino=auto"]),
        prop::sample::subsequence(vec!["nodev", "nosuid", "noexec", "volatile"], 0..=4),
    )
        .prop_map(|(redirect, metacopy, xino, flags)| {
            [redirect, metacopy, xino]
                .into_iter()
                .flatten()
                .chain(flags)
                .collect()
        })
        .boxed()
}

fn label() -> BoxedStrategy<MountLabel> {
    prop_oneof![
        Just("system_u:object_r:container_file_t:s0:c1,c2".to_owned()),
        r"[!#-\[\]-~]{1,255}",
    ]
    .prop_map(|label| label.parse().unwrap())
    .boxed()
}
