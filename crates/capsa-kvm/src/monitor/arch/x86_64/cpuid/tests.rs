//! The leaves of made-up hosts, as kernels read them.

use super::*;

const SIZES: [u32; 5] = [1, 2, 3, 4, 64];

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// What the vendor's name is in EBX, ECX, EDX of leaf 0.
fn vendor(name: &[u8; 12], last: u32) -> kvm_cpuid_entry2 {
    let [ebx, edx, ecx] = [0, 4, 8].map(|at| {
        let bytes = name[at..][..4].try_into().unwrap();
        u32::from_le_bytes(bytes)
    });
    leaf(0, 0, [last, ebx, ecx, edx])
}

/// A host of 2 sockets, 28 cores, 2 threads, on whose processor 0x37 somebody asked KVM.
fn intel() -> Vec<kvm_cpuid_entry2> {
    vec![
        vendor(b"GenuineIntel", 0x20),
        leaf(
            1,
            0,
            [0x606a6, 0x3740_0800, 0x80a8_8027 | 1 << 21, 0x1fab_fbff],
        ),
        leaf(4, 0, [0xfc00_4121, 0x02c0_003f, 0x3f, 0]),
        leaf(4, 1, [0xfc00_4122, 0x01c0_003f, 0x3f, 0]),
        leaf(4, 2, [0xfc00_4143, 0x04c0_003f, 0x3ff, 0]),
        leaf(4, 3, [0xfc0f_c163, 0x02c0_003f, 0xefff, 4]),
        leaf(4, 4, [0, 0, 0, 0]),
        leaf(6, 0, [0xff, 2, 9, 0]),
        leaf(7, 0, [1, u32::MAX, u32::MAX, u32::MAX]),
        leaf(0xa, 0, [0x0830_0805, 0, 0, 0x8604]),
        leaf(0xb, 0, [1, 2, 0x100, 0x37]),
        leaf(0xb, 1, [7, 56, 0x201, 0x37]),
        leaf(0x12, 0, [1, 0, 0, 0]),
        leaf(0x1f, 0, [1, 2, 0x100, 0x37]),
        leaf(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0008, 0, [0x3039, 0, 0, 0]),
    ]
}

/// A host of 64 cores, 2 threads, on whose processor 0x37 somebody asked KVM.
fn amd() -> Vec<kvm_cpuid_entry2> {
    vec![
        vendor(b"AuthenticAMD", 0x10),
        leaf(1, 0, [0x0083_0f10, 0x3780_0800, 0xfed8_320b, 0x178b_fbff]),
        leaf(0xb, 0, [1, 2, 0x100, 0x37]),
        leaf(0xb, 1, [7, 128, 0x201, 0x37]),
        leaf(0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
        leaf(0x8000_0008, 0, [0x3030, 0x1000, 0x0000_707f, 0]),
        leaf(0x8000_000a, 0, [1, 0x8000, 0, 0xff]),
        leaf(0x8000_001d, 0, [0x4121, 0x01c0_003f, 0x3f, 0]),
        leaf(0x8000_001d, 2, [0x4143, 0x01c0_003f, 0x3ff, 2]),
        leaf(0x8000_001d, 3, [0x1_c163, 0x03c0_003f, 0x3fff, 1]),
        leaf(0x8000_001e, 0, [0x37, 0x11b, 0x300, 0]),
    ]
}

fn adapted(mut leaves: Vec<kvm_cpuid_entry2>, index: u32, count: u32) -> Vec<kvm_cpuid_entry2> {
    let cpu = Cpu {
        index,
        count,
        tsc_deadline: true,
    };
    adapt(&mut leaves, &cpu);
    leaves
}

/// What a processor answers: zero where there is no leaf.
fn ask(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let mut found = leaves
        .iter()
        .filter(|leaf| (leaf.function, leaf.index) == (function, index));
    let answer = found
        .next()
        .map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
    assert!(
        found.next().is_none(),
        "leaf {function:#x} {index} is there twice"
    );
    answer
}

/// Every vCPU of every size of either host.
fn every_cpu(mut check: impl FnMut(&[kvm_cpuid_entry2], u32, u32)) {
    for host in [intel(), amd()] {
        for count in SIZES {
            for index in 0..count {
                check(&adapted(host.clone(), index, count), index, count);
            }
        }
    }
}

#[test]
fn leaf_1_has_the_apic_id_and_how_many_there_are() {
    every_cpu(|leaves, index, count| {
        let [_, ebx, ecx, edx] = ask(leaves, 1, 0);
        assert_eq!((ebx >> 24, ebx >> 16 & 0xff), (index, count));
        assert_eq!(ebx & 0xffff, 0x0800, "CLFLUSH's size is the host's");
        assert_eq!(
            edx >> 28 & 1,
            u32::from(count > 1),
            "more than one of {count}"
        );
        assert_eq!(ecx >> 31, 1, "in a virtual machine");
        assert_eq!(ecx >> 24 & 1, 1, "the timer by the TSC");
        assert_eq!(ecx >> 5 & 1, 0, "no VMX");
    });
}

#[test]
fn the_timer_by_the_tsc_is_there_only_if_kvm_has_it() {
    let mut leaves = amd(); // whose leaf 1 has the bit
    let cpu = Cpu {
        index: 0,
        count: 1,
        tsc_deadline: false,
    };
    adapt(&mut leaves, &cpu);
    assert_eq!(ask(&leaves, 1, 0)[2] >> 24 & 1, 0);
}

#[test]
fn leaf_b_makes_one_socket_of_cores_with_one_thread() {
    every_cpu(|leaves, index, count| {
        assert_eq!(ask(leaves, 0xb, 0), [0, 1, 0x100, index]);
        let [shift, processors, kind, id] = ask(leaves, 0xb, 1);
        assert_eq!((processors, kind, id), (count, 0x201, index));
        // The socket's number is what is left of the id: 0 for all.
        assert_eq!(index >> shift, 0, "{index} of {count}");
        assert!(count > 1 << shift >> 1, "no bit too many for {count}");
        assert_eq!(ask(leaves, 0xb, 2), [0, 0, 2, index]);
        assert_eq!(ask(leaves, 0x1f, 0), [0; 4]);
    });
}

#[test]
fn a_processor_without_leaf_b_does_not_get_it() {
    let old = vec![vendor(b"AuthenticAMD", 0xa), leaf(1, 0, [0, 0, 0, 0])];
    assert_eq!(ask(&adapted(old, 3, 4), 0xb, 0), [0; 4]);
}

#[test]
fn intels_leaf_4_has_the_cores_and_who_shares_a_cache() {
    for (count, ids) in [(1, 1), (2, 2), (3, 4), (4, 4), (64, 64)] {
        let leaves = adapted(intel(), 0, count);
        for index in 0..4 {
            let [eax, ebx, ..] = ask(&leaves, 4, index);
            assert_eq!((eax >> 26) + 1, ids, "ids of cores for {count}");
            let sharing = (eax >> 14 & 0xfff) + 1;
            assert_eq!(
                sharing,
                if index == 3 { ids } else { 1 },
                "cache {index} of {count}"
            );
            // What kind of cache it is, and how large, is the host's.
            let [host_eax, host_ebx, ..] = ask(&intel(), 4, index);
            assert_eq!((eax & 0x3fff, ebx), (host_eax & 0x3fff, host_ebx));
        }
        assert_eq!(ask(&leaves, 4, 4), [0; 4]);
    }
}

#[test]
fn amds_leaves_have_the_cores_and_who_shares_a_cache() {
    for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (64, 6)] {
        for index in 0..count {
            let leaves = adapted(amd(), index, count);
            let [eax, ebx, ecx, _] = ask(&leaves, 0x8000_0008, 0);
            assert_eq!((eax, ebx), (0x3030, 0x1000), "the host's");
            assert_eq!(((ecx & 0xff) + 1, ecx >> 12), (count, bits));
            assert_eq!(ask(&leaves, 0x8000_001e, 0), [index, index, 0, 0]);
            for (cache, sharing) in [(0, 1), (2, 1), (3, count)] {
                let [eax, ..] = ask(&leaves, 0x8000_001d, cache);
                assert_eq!((eax >> 14) + 1, sharing, "cache {cache} of {count}");
            }
        }
    }
}

#[test]
fn intels_leaf_of_address_sizes_is_the_hosts() {
    assert_eq!(
        ask(&adapted(intel(), 1, 2), 0x8000_0008, 0),
        [0x3039, 0, 0, 0]
    );
}

#[test]
fn what_belongs_to_the_host_is_left_out() {
    let leaves = adapted(intel(), 0, 2);
    assert_eq!(ask(&leaves, 6, 0), [1 << 2, 0, 0, 0]);
    let [levels, ebx, ecx, edx] = ask(&leaves, 7, 0);
    assert_eq!(levels, 1);
    assert_eq!(!ebx, 1 << 2 | 1 << 25);
    assert_eq!(!ecx, 1 << 30);
    assert_eq!(!edx, 1 << 22 | 1 << 24 | 1 << 25);
    for function in [0xa, 0x12] {
        assert_eq!(ask(&leaves, function, 0), [0; 4], "{function:#x}");
    }
    let leaves = adapted(amd(), 0, 2);
    let [.., ecx, _] = ask(&leaves, 0x8000_0001, 0);
    assert_eq!(!ecx, 1 << 2 | 1 << 23 | 1 << 24 | 1 << 28);
    assert_eq!(ask(&leaves, 0x8000_000a, 0), [0; 4]);
}

#[test]
fn kvms_own_leaves_stay() {
    let leaves = adapted(intel(), 0, 2);
    for function in [0x4000_0000, 0x4000_0001] {
        assert_eq!(ask(&leaves, function, 0), ask(&intel(), function, 0));
    }
}
