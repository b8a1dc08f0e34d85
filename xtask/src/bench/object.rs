//! Instructions and stack of each program in the kernel object, read from the file.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind};

/// Stack limit of a call chain, bytes (`MAX_BPF_STACK`, kernel/bpf/verifier.c).
pub const MAX_STACK: u64 = 512;
/// The verifier rounds each frame up to a multiple of this, bytes.
const FRAME: u64 = 32;
/// Length of an instruction, bytes (RFC 9669 §3).
const INSTRUCTION: u64 = 8;

/// One program of the object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Number of instructions, those of all called functions included once each.
    pub instructions: u64,
    /// Stack of its deepest call chain, bytes, as the verifier counts it.
    pub stack: u64,
    /// The functions of that chain, each with its frame before rounding, bytes.
    pub chain: Vec<(String, u64)>,
}

struct Function {
    name: String,
    instructions: u64,
    frame: u64,
    /// Functions that it calls, by section and address.
    calls: Vec<Place>,
}

type Place = (usize, u64);

/// Every program of the object.
pub fn programs(bytes: &[u8]) -> Result<Vec<Program>> {
    let file = object::File::parse(bytes).context("the kernel object is no ELF file")?;
    let mut functions = BTreeMap::new();
    let mut names = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let Some(section) = symbol.section_index() else { continue };
        let place = (section.0, symbol.address());
        let name = symbol.name()?;
        functions.insert(place, function(&file, name, section, symbol.address(), symbol.size())?);
        if symbol.is_global() && name.starts_with("smtpwatch_") {
            names.push((name.to_owned(), place));
        }
    }
    ensure!(!names.is_empty(), "the kernel object holds no program");
    names.sort();
    let program = |(name, place): (String, Place)| {
        let mut seen = Vec::new();
        let (stack, chain) = stack(&functions, place, &mut seen)?;
        seen.sort_unstable();
        seen.dedup();
        let instructions = seen.iter().filter_map(|place| functions.get(place)).map(|found| found.instructions).sum();
        Ok(Program { name, instructions, stack, chain })
    };
    names.into_iter().map(program).collect()
}

/// The stack of the deepest call chain from a function on, and that chain.
fn stack(
    functions: &BTreeMap<Place, Function>,
    place: Place,
    seen: &mut Vec<Place>,
) -> Result<(u64, Vec<(String, u64)>)> {
    let function = functions.get(&place).with_context(|| format!("a call goes to no function: {place:?}"))?;
    seen.push(place);
    let (mut deepest, mut chain) = (0, Vec::new());
    for call in &function.calls {
        let (depth, calls) = stack(functions, *call, seen)?;
        if depth > deepest {
            (deepest, chain) = (depth, calls);
        }
    }
    chain.insert(0, (function.name.clone(), function.frame));
    Ok((function.frame.next_multiple_of(FRAME).max(FRAME) + deepest, chain))
}

fn function(file: &object::File<'_>, name: &str, section: SectionIndex, address: u64, size: u64) -> Result<Function> {
    let index = section;
    let section = file.section_by_index(index)?;
    let code = section.data_range(address, size)?.context("a function lies outside of its section")?;
    let relocated: BTreeMap<u64, RelocationTarget> =
        section.relocations().map(|(at, relocation)| (at, relocation.target())).collect();
    let (mut frame, mut calls) = (0, Vec::new());
    // Registers that hold the frame pointer before an offset is added.
    let mut copies = [false; 16];
    for (number, octets) in (0_u64..).zip(code.chunks_exact(8)) {
        let (opcode, registers) = (octets[0], octets[1]);
        let (to, from) = (usize::from(registers & 0xf), usize::from(registers >> 4));
        let offset = i64::from(i16::from_le_bytes([octets[2], octets[3]]));
        let immediate = i64::from(i32::from_le_bytes([octets[4], octets[5], octets[6], octets[7]]));
        let mut deep = |offset: i64| frame = frame.max(u64::try_from(-offset).unwrap_or(0));
        match opcode {
            // Loads from the frame, and stores to it.
            0x61 | 0x69 | 0x71 | 0x79 if from == 10 => deep(offset),
            0x62 | 0x6a | 0x72 | 0x7a | 0x63 | 0x6b | 0x73 | 0x7b if to == 10 => deep(offset),
            // r = r10; r += offset
            0xbf => copies[to] = from == 10,
            0x07 if copies[to] => {
                deep(immediate);
                copies[to] = false;
            }
            // A call of a function in this object.
            0x85 if from == 1 => {
                let at = address + number * INSTRUCTION;
                let near = at.wrapping_add_signed((immediate + 1) * INSTRUCTION.cast_signed());
                calls.push(match relocated.get(&at) {
                    Some(RelocationTarget::Symbol(symbol)) => {
                        let symbol = file.symbol_by_index(*symbol)?;
                        let target = symbol.section_index().context("a call goes out of the object")?.0;
                        // For a section symbol, the instruction holds the offset in that section.
                        let place = if symbol.kind() == SymbolKind::Section { 0 } else { symbol.address() };
                        let added = if symbol.kind() == SymbolKind::Section {
                            u64::try_from((immediate + 1) * INSTRUCTION.cast_signed())?
                        } else {
                            0
                        };
                        (target, place + added)
                    }
                    _ => (index.0, near),
                });
            }
            _ => {}
        }
    }
    Ok(Function { name: name.to_owned(), instructions: size / INSTRUCTION, frame, calls })
}
