//! The probe's guest: a few hundred bytes that do, one after the other, what a stock x86_64
//! kernel does while it boots. Before each step the guest says on a port which one comes, so that
//! whatever ends it has a name.
//!
//! Physical memory, identity-mapped in 64-bit mode:
//!
//! ```text
//! 0x1000  code; the exception stubs at +0x400
//! 0x2000  GDT, IDT, the two table registers' values, scratch
//! 0x3000  stack, from its end down
//! 0x4000  page tables: one each of the three upper levels, mapping 2 MiB
//! 0x7000  end
//! ```
#![expect(
    unsafe_code,
    reason = "the guest is machine code, written with the compiler's own assembler"
)]

use std::arch::global_asm;

use super::verdict::Step;

/// Where the guest starts: real mode, CS base 0.
pub(super) const CODE: usize = 0x1000;
const CODE_END: usize = 0x2000;

const GDT: usize = 0x2000;
const IDT: usize = 0x2100;
const GDTR: usize = 0x2300;
const IDTR: usize = 0x2310;
/// 16-byte aligned, as cmpxchg16b wants.
const SCRATCH: usize = 0x2320;
/// 64-byte aligned and zero, as xsave and xrstor want.
const XSAVE_AREA: usize = 0x2400;
const STACK_TOP: usize = 0x4000;
const PML4: usize = 0x4000;
const PDPT: usize = 0x5000;
const PD: usize = 0x6000;
const SIZE: usize = 0x7000;

/// 32 stubs of 8 bytes, one for each exception.
const STUBS: usize = CODE + 0x400;
const STUB_SIZE: usize = 8;
/// The handler of `int3`, right after the stubs.
const BREAKPOINT: usize = STUBS + EXCEPTIONS * STUB_SIZE;
const EXCEPTIONS: usize = 32;

const SELECTOR_CODE64: u16 = 0x08;
const SELECTOR_DATA: u16 = 0x10;
const SELECTOR_CODE32: u16 = 0x18;

/// The guest begins the step whose number it writes.
pub(super) const PORT_STEP: u16 = 0x10;
/// The guest begins or ends a round of [`LOOP_INSTRUCTIONS`]; [`ROUNDS`] of them in a row.
pub(super) const PORT_ROUND: u16 = 0x11;
/// The guest got through.
pub(super) const PORT_DONE: u16 = 0x12;
/// The current step had a wrong result.
pub(super) const PORT_WRONG: u16 = 0x13;
/// The guest got the exception whose vector it writes.
pub(super) const PORT_EXCEPTION: u16 = 0x14;

/// Instructions of one timed round: long enough that the exits at its ends (2 µs on hardware, 0.5 ms
/// where hardware is emulated) do not decide, short enough that a KVM that interprets a million
/// instructions per second gets through all rounds within the probe's limit, and that a round fits
/// between two interruptions by the host's scheduler.
pub(super) const LOOP_INSTRUCTIONS: u32 = 30_000;
/// Rounds of which the best counts, as the host may interrupt any of them.
const ROUNDS: u32 = 3;

/// The guest's memory at its start.
#[repr(C, align(4096))]
pub(super) struct Memory([u8; SIZE]);

impl Memory {
    /// Memory with the probe's guest.
    pub(super) fn new() -> Box<Self> {
        // SAFETY: the assembler defines both symbols below, around bytes in a read-only section,
        // the second one after the first.
        let code = unsafe {
            let start = &raw const capsa_kvm_probe_guest;
            let end = &raw const capsa_kvm_probe_guest_end;
            std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
        };
        Self::with_code(code)
    }

    /// Memory with other code at [`CODE`], in 16-bit mode: a page at most.
    pub(super) fn with_code(code: &[u8]) -> Box<Self> {
        assert!(code.len() <= CODE_END - CODE, "the code overlaps its data");
        let mut memory = Box::new(Self([0; SIZE]));
        memory.put(CODE, code);

        for (index, descriptor) in [
            0_u64,
            0x00af_9b00_0000_ffff, // SELECTOR_CODE64: long mode, ring 0
            0x00cf_9300_0000_ffff, // SELECTOR_DATA: flat, 4 GiB
            0x00cf_9b00_0000_ffff, // SELECTOR_CODE32: flat, 4 GiB
        ]
        .into_iter()
        .enumerate()
        {
            memory.put(GDT + index * 8, &descriptor.to_le_bytes());
        }
        for vector in 0..EXCEPTIONS {
            let handler = match vector {
                3 => BREAKPOINT,
                _ => STUBS + vector * STUB_SIZE,
            };
            memory.put(IDT + vector * 16, &interrupt_gate(handler).to_le_bytes());
        }
        memory.put(GDTR, &table_register(GDT, 4 * 8));
        memory.put(IDTR, &table_register(IDT, EXCEPTIONS * 16));

        const PRESENT_WRITABLE: u64 = 0b11;
        const LARGE: u64 = 1 << 7;
        for (table, entry) in [
            (PML4, PDPT as u64 | PRESENT_WRITABLE),
            (PDPT, PD as u64 | PRESENT_WRITABLE),
            (PD, LARGE | PRESENT_WRITABLE),
        ] {
            memory.put(table, &entry.to_le_bytes());
        }
        memory
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..][..bytes.len()].copy_from_slice(bytes);
    }
}

/// A present 64-bit interrupt gate of ring 0 (Intel SDM volume 3, 7.14.1), for a handler below
/// 64 KiB.
fn interrupt_gate(handler: usize) -> u128 {
    handler as u128 | u128::from(SELECTOR_CODE64) << 16 | 0x8e00 << 32
}

/// What lgdt and lidt read: limit, then base.
fn table_register(base: usize, bytes: usize) -> [u8; 10] {
    let value = (bytes - 1) as u128 | (base as u128) << 16;
    let mut register = [0; 10];
    register.copy_from_slice(&value.to_le_bytes()[..10]);
    register
}

unsafe extern "C" {
    static capsa_kvm_probe_guest: u8;
    static capsa_kvm_probe_guest_end: u8;
}

global_asm!(
    ".pushsection .rodata.capsa_kvm_probe_guest, \"a\"",
    ".globl capsa_kvm_probe_guest, capsa_kvm_probe_guest_end",
    ".hidden capsa_kvm_probe_guest, capsa_kvm_probe_guest_end",
    ".macro capsa_step number",
    "  movb $\\number, %al",
    "  outb %al, ${PORT_STEP}",
    ".endm",
    "capsa_kvm_probe_guest:",

    ".code16",
    "  capsa_step {LONG_MODE}",
    "  cli",
    "  lgdtl {GDTR}",
    "  movl $0x33, %eax", // CR0: PE, MP, ET, NE; caches on
    "  movl %eax, %cr0",
    "  ljmpl ${CODE32}, ${CODE} + (.Lcapsa_protected - capsa_kvm_probe_guest)",

    ".code32",
    ".Lcapsa_protected:",
    "  movw ${DATA}, %ax",
    "  movw %ax, %ds",
    "  movw %ax, %es",
    "  movw %ax, %ss",
    "  movl $0x620, %eax", // CR4: PAE, OSFXSR, OSXMMEXCPT
    "  movl %eax, %cr4",
    "  movl ${PML4}, %eax",
    "  movl %eax, %cr3",
    "  movl $0xc0000080, %ecx", // EFER: LME
    "  rdmsr",
    "  orl $0x100, %eax",
    "  wrmsr",
    "  movl %cr0, %eax",
    "  orl $0x80000000, %eax", // CR0: PG
    "  movl %eax, %cr0",
    "  ljmpl ${CODE64}, ${CODE} + (.Lcapsa_long - capsa_kvm_probe_guest)",

    ".code64",
    ".Lcapsa_long:",
    "  movl ${STACK_TOP}, %esp",
    "  lidtq {IDTR}",

    "  capsa_step {CPUID}",
    "  movl $0x80000001, %eax",
    "  cpuid",
    "  btl $29, %edx", // LM
    "  jnc .Lcapsa_wrong",
    "  movl $1, %eax",
    "  cpuid",
    "  movl %ecx, %ebp",

    "  btl $13, %ebp", // CX16
    "  jnc 1f",
    "  capsa_step {CMPXCHG16B}",
    "  movq $1, {SCRATCH}",
    "  movq $2, {SCRATCH} + 8",
    "  movl $1, %eax",
    "  movl $2, %edx",
    "  movl $3, %ebx",
    "  movl $4, %ecx",
    "  lock cmpxchg16b {SCRATCH}",
    "  jne .Lcapsa_wrong",
    "  cmpq $3, {SCRATCH}",
    "  jne .Lcapsa_wrong",
    "  cmpq $4, {SCRATCH} + 8",
    "  jne .Lcapsa_wrong",
    "1:",

    "  btl $26, %ebp", // XSAVE
    "  jnc 1f",
    "  capsa_step {XSETBV}",
    "  movl $0x40620, %eax", // CR4: as above, and OSXSAVE
    "  movq %rax, %cr4",
    "  xorl %ecx, %ecx",
    "  xorl %edx, %edx",
    "  movl $3, %eax", // XCR0: x87, SSE
    "  xsetbv",
    // Only the x87 part is compared: the SVM that QEMU 7.2 emulates hides xsetbv from KVM, which
    // then takes the rest of XCR0 back at the next exit; stock kernels run there all the same.
    "  fninit",
    "  fld1",
    "  capsa_step {XSAVE}",
    "  xorl %edx, %edx",
    "  movl $1, %eax",
    "  xsave64 {XSAVE_AREA}",
    "  fninit",
    "  capsa_step {XRSTOR}",
    "  xorl %edx, %edx",
    "  movl $1, %eax",
    "  xrstor64 {XSAVE_AREA}",
    "  fstpl {SCRATCH}",
    "  movabsq $0x3ff0000000000000, %rax", // 1.0
    "  cmpq %rax, {SCRATCH}",
    "  jne .Lcapsa_wrong",
    "1:",

    "  capsa_step {INT3}",
    "  xorl %ebx, %ebx",
    "  int3",
    "  cmpl $1, %ebx",
    "  jne .Lcapsa_wrong",

    "  capsa_step {SPEED}",
    "  movl ${ROUNDS}, %ebx",
    "  outb %al, ${PORT_ROUND}",
    "1:",
    "  movl ${LOOP_INSTRUCTIONS} / 2, %ecx",
    "2:",
    "  decl %ecx",
    "  jnz 2b",
    "  outb %al, ${PORT_ROUND}",
    "  decl %ebx",
    "  jnz 1b",

    "  outb %al, ${PORT_DONE}",
    ".Lcapsa_stop:",
    "  hlt",
    "  jmp .Lcapsa_stop",

    ".Lcapsa_wrong:",
    "  outb %al, ${PORT_WRONG}",
    "  jmp .Lcapsa_stop",

    // The stubs' return address tells the vector.
    ".Lcapsa_exception:",
    "  popq %rax",
    "  subl ${STUBS}, %eax",
    "  shrl $3, %eax",
    "  outb %al, ${PORT_EXCEPTION}",
    "  jmp .Lcapsa_stop",

    ".org capsa_kvm_probe_guest + {STUBS} - {CODE}",
    ".rept {EXCEPTIONS}",
    "  call .Lcapsa_exception",
    "  .balign {STUB_SIZE}",
    ".endr",

    // At BREAKPOINT.
    "  incl %ebx",
    "  capsa_step {IRETQ}",
    "  iretq",

    "capsa_kvm_probe_guest_end:",
    ".purgem capsa_step",
    ".popsection",
    LONG_MODE = const Step::LongMode as u8,
    CPUID = const Step::Cpuid as u8,
    CMPXCHG16B = const Step::Cmpxchg16b as u8,
    XSETBV = const Step::Xsetbv as u8,
    XSAVE = const Step::Xsave as u8,
    XRSTOR = const Step::Xrstor as u8,
    INT3 = const Step::Int3 as u8,
    IRETQ = const Step::Iretq as u8,
    SPEED = const Step::Speed as u8,
    PORT_STEP = const PORT_STEP,
    PORT_ROUND = const PORT_ROUND,
    PORT_DONE = const PORT_DONE,
    PORT_WRONG = const PORT_WRONG,
    PORT_EXCEPTION = const PORT_EXCEPTION,
    CODE = const CODE,
    CODE32 = const SELECTOR_CODE32,
    CODE64 = const SELECTOR_CODE64,
    DATA = const SELECTOR_DATA,
    GDTR = const GDTR,
    IDTR = const IDTR,
    PML4 = const PML4,
    STACK_TOP = const STACK_TOP,
    SCRATCH = const SCRATCH,
    XSAVE_AREA = const XSAVE_AREA,
    ROUNDS = const ROUNDS,
    LOOP_INSTRUCTIONS = const LOOP_INSTRUCTIONS,
    STUBS = const STUBS,
    STUB_SIZE = const STUB_SIZE,
    EXCEPTIONS = const EXCEPTIONS,
    options(att_syntax),
);
