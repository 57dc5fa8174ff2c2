//! Everything a plan depends on, generated, and the same arithmetic done a second way.

use std::ffi::OsStr;
use std::ops::{Range, RangeInclusive};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::LazyLock;

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

    /// Bytes of a path in the home.
    pub(crate) fn len_in_home(&self, relative: &str) -> usize {
        self.home.len() + usize::from(!self.home.ends_with(b"/")) + relative.len()
    }

    /// How many directories the kernel is to stack.
    pub(crate) fn stacked(&self) -> usize {
        self.links.len() + usize::from(self.access == Access::ReadOnly)
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
            _ => self.len_in_home("") + special(&self.home),
        };
        let words: usize = self.words().iter().map(|word| word.len() + 1).sum();
        let own = match self.access {
            Access::ReadOnly => self.id.as_str().len() + "/diff".len(),
            Access::Writable => 0,
        };
        let links = self.links.len() * ("l/".len() + 26);
        let stack = self.stacked() * prefix + own + links;
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
        words + "lowerdir=".len() + stack + self.stacked().saturating_sub(1) + upper + label
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
        id in layer_id(),
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

/// Absolute paths of any bytes but NUL, with many of those that mean something to the kernel. The
/// bytes follow from a seed: thousands of values of their own would take most of the time.
fn home() -> BoxedStrategy<Vec<u8>> {
    let path = |len: Range<usize>| {
        (any::<u64>(), len).prop_map(|(seed, len)| {
            let mut path = vec![b'/'];
            path.extend(Numbers(seed).take(len).map(byte));
            path
        })
    };
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

/// Half of them special, a third letters, the rest any but NUL.
fn byte(number: u64) -> u8 {
    let (kind, number) = (number % 6, (number >> 8) as usize);
    match kind {
        0..3 => br#"\,:/"= ."#[number % 8],
        3..5 => b'a' + u8::try_from(number % 26).unwrap(),
        _ => u8::try_from(1 + number % 255).unwrap(),
    }
}

/// Numbers that follow from a seed: SplitMix64.
struct Numbers(u64);

impl Iterator for Numbers {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(mixed ^ (mixed >> 31))
    }
}

fn layer_id() -> BoxedStrategy<LayerId> {
    (any::<u64>(), 0..=127_usize)
        .prop_filter_map("reserved", |(seed, len)| {
            let symbols = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
            let mut numbers = Numbers(seed);
            let mut symbol = |among: usize| {
                let number = numbers.next().unwrap_or_default() >> 8;
                char::from(symbols[number as usize % among])
            };
            let first = symbol(62);
            let id: String = std::iter::once(first)
                .chain((0..len).map(|_| symbol(65)))
                .collect();
            id.parse().ok()
        })
        .boxed()
}

/// More than any kernel stacks.
const MAX_LINKS: usize = 520;

/// Distinct links: often about as many as fit 4 KiB, and often about as many as the kernel stacks.
fn links() -> BoxedStrategy<Vec<LinkId>> {
    let count = prop_oneof![
        1 => 0..=3_usize,
        2 => 4..=160_usize,
        2 => 0..=MAX_LINKS,
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
    static IDS: LazyLock<Vec<LayerId>> = LazyLock::new(|| {
        let ids = (0..=MAX_LINKS).map(|index| format!("lower-{index}").parse());
        ids.map(Result::unwrap).collect()
    });
    IDS[index].clone()
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
        // Printable, but for quotation marks and backslashes.
        (any::<u64>(), 1..=255_usize).prop_map(|(seed, len)| {
            let printable = (b'!'..=b'~').filter(|byte| !br#""\"#.contains(byte));
            let printable: Vec<u8> = printable.collect();
            let number = |number: u64| (number >> 8) as usize % printable.len();
            let bytes = Numbers(seed).take(len).map(|at| printable[number(at)]);
            bytes.map(char::from).collect::<String>()
        }),
    ]
    .prop_map(|label| label.parse().unwrap())
    .boxed()
}
