//! Guests of a few instructions, assembled by hand: an ELF that is entered in 64-bit mode, with the
//! first 4 GiB mapped to themselves and interrupts off.

use std::io::Write;

use tempfile::NamedTempFile;

/// Where the code lies: above the tables that the monitor writes for a kernel.
pub(crate) const CODE: u64 = 0x100_0000;

/// The serial port's data register.
const COM1: u16 = 0x3f8;

/// A guest's instructions, in their order. Encodings are those of the "Intel 64 and IA-32
/// Architectures Software Developer's Manual", volume 2.
#[derive(Debug, Clone, Default)]
pub(crate) struct Payload(Vec<u8>);

impl Payload {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Any instruction.
    pub(crate) fn code(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `mov dx, port; mov al, value; out dx, al`
    pub(crate) fn out_byte(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.code(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// `mov dx, port; mov eax, value; out dx, eax`
    pub(crate) fn out_double(self, port: u16, value: u32) -> Self {
        let [low, high] = port.to_le_bytes();
        let coded = self.code(&[0x66, 0xba, low, high, 0xb8]);
        coded.code(&value.to_le_bytes()).code(&[0xef])
    }

    /// `mov dx, port; in eax, dx`
    pub(crate) fn in_double(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.code(&[0x66, 0xba, low, high, 0xed])
    }

    /// Prints the four bytes of `eax`, the lowest first: `out dx, al; shr eax, 8`, four times.
    pub(crate) fn print_eax(self) -> Self {
        let [low, high] = COM1.to_le_bytes();
        let port = self.code(&[0x66, 0xba, low, high]);
        (0..4).fold(port, |coded, _| coded.code(&[0xee, 0xc1, 0xe8, 8]))
    }

    /// Prints a text byte by byte.
    pub(crate) fn print(self, text: &[u8]) -> Self {
        text.iter()
            .fold(self, |coded, byte| coded.out_byte(COM1, *byte))
    }

    /// Prints `byte` for ever: `again: out dx, al; jmp again`
    pub(crate) fn print_for_ever(self, byte: u8) -> Self {
        let [low, high] = COM1.to_le_bytes();
        self.code(&[0x66, 0xba, low, high, 0xb0, byte, 0xee, 0xeb, 0xfd])
    }

    /// `mov eax, [address]`, with an address in `rbx`.
    pub(crate) fn load_from(self, address: u64) -> Self {
        let coded = self.code(&[0x48, 0xbb]).code(&address.to_le_bytes());
        coded.code(&[0x8b, 0x03])
    }

    /// `movzx eax, byte [address]`, with an address in `rbx`.
    pub(crate) fn load_byte_from(self, address: u64) -> Self {
        let coded = self.code(&[0x48, 0xbb]).code(&address.to_le_bytes());
        coded.code(&[0x0f, 0xb6, 0x03])
    }

    /// `mov byte [address], value`, with the address in `rbx`.
    pub(crate) fn store_byte_to(self, address: u64, value: u8) -> Self {
        let coded = self.code(&[0x48, 0xbb]).code(&address.to_le_bytes());
        coded.code(&[0xc6, 0x03, value])
    }

    /// `mov word [address], value`, with the address in `rbx`.
    pub(crate) fn store_word_to(self, address: u64, value: u16) -> Self {
        let coded = self.code(&[0x48, 0xbb]).code(&address.to_le_bytes());
        coded.code(&[0x66, 0xc7, 0x03]).code(&value.to_le_bytes())
    }

    /// `mov dword [address], value`, with the address in `rbx`.
    pub(crate) fn store_to(self, address: u64, value: u32) -> Self {
        let coded = self.code(&[0x48, 0xbb]).code(&address.to_le_bytes());
        coded.code(&[0xc7, 0x03]).code(&value.to_le_bytes())
    }

    /// `jmp` to itself: never leaves the guest.
    pub(crate) fn spin(self) -> Self {
        self.code(&[0xeb, 0xfe])
    }

    /// `hlt` for ever, with interrupts off: nothing wakes it.
    pub(crate) fn halt(self) -> Self {
        self.code(&[0xf4, 0xeb, 0xfd])
    }

    /// Loads an interrupt descriptor table at `table` whose only gate leads to `handler`, with the
    /// present code segment. The pseudo-descriptor of `lidt` goes into the gate of vector 0.
    pub(crate) fn interrupts(self, table: u32, vector: u8, handler: u32) -> Self {
        let gate = u64::from(table) + u64::from(vector) * 16;
        let (low, high) = (handler & 0xffff, handler & 0xffff_0000);
        self.store_to(gate, low)
            .store_to(gate + 4, high | 0x8e00) // present, interrupt gate
            .store_to(gate + 8, 0)
            .store_to(gate + 12, 0)
            .code(&[0x48, 0xbb])
            .code(&(gate + 2).to_le_bytes())
            .code(&[0x8c, 0x0b]) // mov [rbx], cs
            .store_to(u64::from(table) + 4, table >> 16)
            .store_to(u64::from(table) + 8, 0)
            .store_to(table.into(), 0xfff | table << 16)
            .code(&[0x0f, 0x01, 0x1b]) // lidt [rbx]
    }

    /// `sti`, then `hlt` for ever.
    pub(crate) fn wait_for_interrupts(self) -> Self {
        self.code(&[0xfb]).halt()
    }

    /// `nop`s up to `offset` from the entry.
    pub(crate) fn at(mut self, offset: usize) -> Self {
        assert!(self.0.len() <= offset, "{} bytes", self.0.len());
        self.0.resize(offset, 0x90);
        self
    }

    /// An ELF file with the payload at its entry.
    pub(crate) fn file(&self) -> NamedTempFile {
        let size = self.0.len() as u64;
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        // e_type executable, e_machine x86-64, e_version; e_entry, e_phoff, e_shoff; e_flags;
        // e_ehsize, e_phentsize, e_phnum, and no sections.
        elf.extend([2_u16, 62].map(u16::to_le_bytes).concat());
        elf.extend(1_u32.to_le_bytes());
        elf.extend([CODE, 64, 0].map(u64::to_le_bytes).concat());
        elf.extend(0_u32.to_le_bytes());
        elf.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
        // One program header: p_type load, p_flags rwx; p_offset, p_vaddr, p_paddr, p_filesz,
        // p_memsz, p_align.
        elf.extend([1_u32, 7].map(u32::to_le_bytes).concat());
        let header = [0x1000, CODE, CODE, size, size + 0x1000, 0x1000];
        elf.extend(header.map(u64::to_le_bytes).concat());
        elf.resize(0x1000, 0);
        elf.extend_from_slice(&self.0);
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&elf).unwrap();
        file
    }
}
