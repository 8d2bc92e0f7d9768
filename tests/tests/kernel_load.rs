//! The kernel takes the program, and the verifier has little to do for it.

use anyhow::Result;
use lb_common::host::world::World;
use lb_tests::kernel::{Kernel, isolated};

/// Instructions that the verifier may look at: a tenth over what a program needs, and far below
/// the kernel's own limit of a million. Raise it knowingly.
const VERIFIED_INSTRUCTIONS: [(&str, u32); 3] =
    [("lb", 135_000), ("answer", 40_000), ("later", 20_000)];

#[test]
fn the_kernel_loads_the_programs_within_their_budgets() -> Result<()> {
    isolated(|_| {
        let mut kernel = Kernel::load()?;
        for (program, most) in VERIFIED_INSTRUCTIONS {
            let verified = kernel.verified_instructions(program)?;
            println!("{program}: {verified} verified instructions of at most {most}");
            assert!(verified > 0 && verified <= most, "{program}: {verified}");
        }
        Ok(())
    })
}

#[test]
fn the_maps_take_every_entry_of_the_standard_world() -> Result<()> {
    isolated(|_| Kernel::load()?.fill(&World::standard().tables))
}
