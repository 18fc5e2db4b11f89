//! Writes real encodings for every target into `corpus/TARGET/`.

use std::io;

fn main() -> io::Result<()> {
    let write = |name: &str, samples: Vec<Vec<u8>>| {
        let folder = std::path::Path::new("corpus").join(name);
        std::fs::create_dir_all(&folder)?;
        println!("{name}: {} seeds", samples.len());
        samples.iter().enumerate().try_for_each(|(at, bytes)| {
            std::fs::write(folder.join(format!("seed-{at:03}")), bytes)
        })
    };
    for target in &rumormill_fuzz::TARGETS {
        // Alike ones teach nothing.
        let mut samples = (target.samples)();
        let step = samples.len().div_ceil(100).max(1);
        samples = samples.into_iter().step_by(step).collect();
        write(target.name, samples)?;
    }
    write("stream", vec![b"\x03\x02ab\x03xyz".to_vec(), [&[7, 0x80, 1][..], &[0; 128]].concat()])
}
