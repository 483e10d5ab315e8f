//! The asked load: runs packets through the verified program by `BPF_PROG_TEST_RUN` (Linux 4.12; 5.10 with a
//! context). No flow is looked up or made, nothing is counted, nothing is attached.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunOptions};
use portcullis_common::event::{Action, Direction, Reason};
use portcullis_common::judge::Origin;
use portcullis_common::wire::{ANSWER_AUDITED, EndpointWord};
use portcullis_policy::answer::{Question, pod_config};
use portcullis_policy::desired::{Desired, EndpointRulesets};
use portcullis_policy::diff::diff;
use portcullis_policy::model::ObjectKey;
use portcullis_policy::select::Directory;
use portcullis_policy::sizes::Sizes;

use super::kernel::Kernel;
use super::load::{self, BpfError, POD_EGRESS, POD_INGRESS, Pins, Purpose};
use crate::world::{AskKernel, KernelAnswer, World};

/// Bytes of `struct __sk_buff` that are passed, up to and with `cb`.
const CONTEXT_BYTES: usize = 68;
/// Room for the whole of `struct __sk_buff` (192 bytes on 6.18) on the way back: with less, the call fails with
/// ENOSPC though the program ran.
const ANSWER_BYTES: usize = 256;
/// Where `cb` starts in it.
const CB: usize = 48;
const ASK_OWN_NODE: u32 = 1;
const ASK_OWN_INTERFACE: u32 = 2;
/// What the program returns for "allowed".
const PASS: u32 = u32::MAX;

/// A load that can be asked.
pub struct Asker {
    ebpf: Mutex<Ebpf>,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

impl Asker {
    /// Beside a running agent: shares its pinned maps.
    pub fn beside(pins: &Pins, sizes: &Sizes) -> Result<Self, BpfError> {
        Ok(Self { ebpf: Mutex::new(load::load(Purpose::Ask, Some(pins), sizes)?) })
    }

    /// Runs a frame through a program at a slot.
    pub fn run(
        &self,
        slot: u32,
        direction: Direction,
        origin: Origin,
        frame: &[u8],
    ) -> anyhow::Result<KernelAnswer> {
        let mut context = [0u8; CONTEXT_BYTES];
        let asked = match origin {
            // What the hook sees in a frame is not asked.
            Origin::Forwarded | Origin::OtherStation | Origin::Hairpin => 0,
            Origin::OwnNode => ASK_OWN_NODE,
            Origin::OwnInterface => ASK_OWN_INTERFACE,
        };
        for (place, value) in [slot, asked].into_iter().enumerate() {
            write(&mut context, place, value);
        }
        let mut answer = [0u8; ANSWER_BYTES];
        let name = match direction {
            Direction::Ingress => POD_INGRESS,
            Direction::Egress => POD_EGRESS,
        };
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let program = load::classifier(&mut ebpf, name)?;
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                ctx_out: Some(&mut answer),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("BPF_PROG_TEST_RUN of {name}"))?;
        let action = if result.return_value == PASS { Action::Allow } else { Action::Deny };
        let word = read(&answer, 2);
        let number = word & !ANSWER_AUDITED;
        let reason = u8::try_from(number)
            .ok()
            .and_then(Reason::from_number)
            .with_context(|| format!("{name} answered with the unknown reason {number}"))?;
        Ok(KernelAnswer { action, audited: word & ANSWER_AUDITED != 0, reason, counter: read(&answer, 3) })
    }
}

fn write(context: &mut [u8], place: usize, value: u32) {
    let at = CB + place * 4;
    if let Some(bytes) = context.get_mut(at..at + 4) {
        bytes.copy_from_slice(&value.to_ne_bytes());
    }
}

fn read(context: &[u8], place: usize) -> u32 {
    let at = CB + place * 4;
    context.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// A copy of the tables of its own, on no path and attached nowhere: what `--kernel` asks offline.
#[derive(Debug)]
pub struct Private {
    asker: Asker,
    slots: BTreeMap<ObjectKey, u32>,
    kernel: Kernel,
    written: Desired,
}

impl Private {
    /// Loads the programs with tables of their own and writes a world's into them. Needs `CAP_BPF` and
    /// `CAP_NET_ADMIN`.
    pub fn load(world: &World) -> anyhow::Result<Self> {
        let (kernel, ebpf) = Kernel::private(Purpose::Ask, world.desired.bank)?;
        let mut private = Self {
            asker: Asker { ebpf: Mutex::new(ebpf) },
            slots: BTreeMap::new(),
            written: Desired { bank: kernel.bank(), ..Desired::default() },
            kernel,
        };
        private.write(world)?;
        Ok(private)
    }

    /// Writes another world over the last one; nobody reads meanwhile.
    pub fn write(&mut self, world: &World) -> anyhow::Result<()> {
        let plan = diff(&self.written, &world.desired);
        for op in plan.before.iter().chain(&plan.after) {
            self.kernel.apply(op)?;
        }
        self.written = world.desired.clone();
        self.slots.clear();
        let directory = Directory::new(&world.cluster);
        for (slot, key) in (0u32..).zip(directory.pods.keys()) {
            let rulesets = world.desired.endpoints.get(*key).copied().unwrap_or(EndpointRulesets::CLOSED);
            let config = pod_config(&directory, key);
            let endpoint = EndpointWord { ingress: rulesets.ingress, egress: rulesets.egress, generation: 0 };
            self.kernel.set_endpoint(slot, config, endpoint)?;
            self.slots.insert((*key).clone(), slot);
        }
        Ok(())
    }

    /// The slot of a pod, and the load to ask: for tests that bring their own packets.
    #[must_use]
    pub fn at(&self, pod: &ObjectKey) -> Option<(u32, &Asker)> {
        self.slots.get(pod).map(|slot| (*slot, &self.asker))
    }
}

impl AskKernel for Private {
    fn ask(&self, question: &Question) -> anyhow::Result<Option<KernelAnswer>> {
        match self.at(&question.pod) {
            None => Ok(None),
            Some((slot, asker)) => {
                asker.run(slot, question.direction, question.origin, &question.frame).map(Some)
            }
        }
    }
}
