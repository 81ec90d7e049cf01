//! What every backend must do, written once.
//!
//! ```text
//! capsa_testing::behaviours!(vm_qemu, capsa::BackendChoice::Qemu, shares, uefi, monitor_process);
//! ```
//!
//! makes a module of tests, one for each behaviour. Each builds its own VM and leaves nothing. After
//! the backend come the parts that not every backend has; [`claims::are_complete`] is one of the
//! tests and compares them with what the backend claims.

pub mod boot;
pub mod claims;
pub mod console;
pub mod disks;
pub mod end;
pub mod holder;
pub mod locks;
pub mod network;
pub mod refusals;
pub mod sandbox;
pub mod sandbox_files;
pub mod sandbox_hostile;
pub mod sandbox_main;
pub mod sandbox_root;
pub mod shares;
pub mod shares_9p;
pub mod uefi;
pub mod vsock;

/// Makes a test of every behaviour for one backend, and of those of the parts that it names.
#[macro_export]
macro_rules! behaviours {
    ($backend:ident, $choice:expr $(, $part:ident)* $(,)?) => {
        mod $backend {
            #[test]
            fn claims_are_complete() {
                $crate::behaviours::claims::are_complete($choice, &[$(stringify!($part)),*]);
            }
            $crate::behaviours! { @every $choice }
            $($crate::behaviours! { @$part $choice })*
        }
    };
    (@every $choice:expr) => {
        $crate::behaviours! { @tests $choice,
            boot::boots_to_a_shell,
            boot::the_guest_has_the_cpus_and_the_memory_it_was_given,
            boot::takes_as_many_devices_as_it_claims,
            boot::a_root_disk_boots_to_a_login,
            boot::a_bzimage_boots,
            console::output_that_nobody_reads_stalls_neither_guest_nor_kill,
            console::a_holder_that_stands_still_costs_the_guest_no_byte,
            console::a_dead_vm_keeps_its_console,
            console::bytes_pass_both_ways_unchanged,
            console::a_vm_without_a_console_keeps_its_last_lines,
            disks::what_a_guest_writes_is_there_for_the_next,
            disks::a_read_only_disk_is_not_written,
            disks::an_ephemeral_disk_is_thrown_away,
            disks::a_backing_file_is_read_only_when_it_is_allowed,
            end::power_off,
            end::reset,
            end::panic_with_pvpanic,
            end::panic_before_any_driver,
            end::stop_is_the_guests_own_power_off,
            end::stop_kills_a_deaf_guest_after_its_grace,
            end::kill,
            end::the_time_limit_ends_a_vm,
            end::pause_stops_the_guest_and_resume_lets_it_go_on,
            end::a_paused_vm_can_be_stopped_and_killed,
            holder::dropping_the_last_handle_kills_in_every_context,
            holder::a_vm_outlives_the_thread_that_started_it,
            holder::the_death_of_the_holder_ends_the_vm_and_leaves_no_file,
            holder::twenty_cycles_leave_nothing,
            locks::a_disk_has_one_writer_or_many_readers,
            locks::qemu_by_hand_is_excluded_too,
            locks::a_start_is_tried_again_while_a_disk_is_let_go,
            refusals::bad_files_are_named_before_anything_starts,
            refusals::impossible_requests_are_refused_together,
            sandbox::a_program_has_its_output_and_its_status,
            sandbox::streams_pass_as_they_come,
            sandbox::many_programs_leave_nothing,
            sandbox::a_silent_reader_holds_up_nobody_else,
            sandbox::a_sandbox_has_its_shares,
            sandbox::every_wait_for_a_sandbox_ends,
            sandbox::a_guest_that_fails_has_its_last_words,
            sandbox::a_program_that_nobody_waits_for_is_killed,
            sandbox::a_program_outlives_its_sandbox,
            sandbox_main::the_main_process_ends_the_vm_with_its_status,
            sandbox_main::waiting_for_a_sandbox_drains_its_main_process,
            sandbox_main::stop_asks_the_main_process,
            sandbox_main::a_main_process_that_is_not_there_is_refused,
            sandbox_main::the_agents_death_is_an_error_and_the_main_process_survives,
            sandbox_main::a_terminal_has_a_size_and_keys,
            sandbox_main::a_program_has_what_it_is_given_and_nothing_else,
            sandbox_main::a_sandbox_has_its_disks,
            sandbox_files::files_are_read_written_and_listed,
            sandbox_files::trees_are_copied_both_ways,
            sandbox_files::a_hostile_guests_tree_is_harmless,
            sandbox_hostile::a_hostile_guest_answers_ten_thousand_requests,
            sandbox_hostile::a_hostile_guest_with_a_fork_bomb_is_under_control,
            sandbox_hostile::a_hostile_guest_that_fills_its_disks_is_bounded,
        }
    };
    (@shares $choice:expr) => {
        $crate::behaviours! { @tests $choice,
            shares::a_writable_share_passes_files_both_ways,
            shares::a_read_only_share_is_not_written,
            shares::nothing_dangerous_reaches_the_host,
            shares::files_are_the_hosts_own,
            shares::a_single_file_is_shared_without_its_neighbours,
            shares::a_server_is_confined_and_shares_its_vms_fate,
            sandbox_root::a_folder_is_a_root_that_does_not_change,
            sandbox_root::the_hosts_programs_run_without_its_data,
            sandbox_root::the_disk_for_changes_is_bounded,
        }
    };
    (@shares_9p $choice:expr) => {
        $crate::behaviours! { @tests $choice,
            shares_9p::a_writable_9p_share_passes_files_both_ways,
            shares_9p::a_read_only_9p_share_is_not_written,
            shares_9p::nothing_dangerous_reaches_the_host_over_9p,
        }
    };
    (@uefi $choice:expr) => {
        $crate::behaviours! { @tests $choice,
            uefi::firmware_boots_a_disk,
            uefi::variables_are_kept_in_their_store,
        }
    };
    // Not in the bench, whose one processor would have to be 64: there tables and topology are tested
    // for as many, and four boot.
    (@most_cpus $choice:expr) => {
        $crate::behaviours! { @tests $choice, boot::takes_as_many_cpus_as_it_claims }
    };
    // What a monitor of one's own can get wrong, and QEMU does not.
    (@machine $choice:expr) => {
        $crate::behaviours! { @tests $choice,
            boot::memory_of_every_size_is_whole,
            boot::vcpus_are_cores_of_one_socket,
            boot::a_cloud_kernel_boots,
        }
    };
    // Too slow for a backend that emulates: VM after VM.
    (@sequences $choice:expr) => {
        $crate::behaviours! { @tests $choice, end::random_sequences_end_as_they_should }
    };
    (@vsock $choice:expr) => {
        $crate::behaviours! { @tests $choice,
            vsock::streams_pass_both_ways,
            vsock::a_vm_without_vsock_says_so,
        }
    };
    (@network $choice:expr) => {
        $crate::behaviours! { @tests $choice,
            network::a_sandbox_reaches_what_its_policy_allows,
            network::bytes_pass_whole_both_ways,
            network::members_of_a_cluster_reach_each_other,
            network::nat_reaches_public_addresses_only,
        }
    };
    // Claimed, and run elsewhere.
    (@uefi_elsewhere $choice:expr) => {};
    (@shares_9p_elsewhere $choice:expr) => {};
    // Backends whose monitor is a process of its own.
    (@monitor_process $choice:expr) => {
        $crate::behaviours! { @tests $choice, end::a_monitor_that_dies_is_a_crash }
    };
    (@tests $choice:expr, $($part:ident :: $behaviour:ident),* $(,)?) => {
        $(
            #[test]
            fn $behaviour() {
                $crate::behaviours::run(|| $crate::behaviours::$part::$behaviour($choice));
            }
        )*
    };
}

/// Runs a behaviour on a runtime of its own.
pub fn run<F: Future<Output = ()>>(behaviour: impl FnOnce() -> F) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(behaviour());
}
