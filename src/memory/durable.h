// Files that are there whole or not at all, also after a crash of the machine. Any thread. Errors: unavailable, naming
// the path and the system's reason (the disk is full, no permission).
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

namespace parallm {

/** The pieces, one after another: written under another name, brought to the disk, renamed. */
void write_durably(const std::filesystem::path& path, const std::vector<std::string_view>& pieces);

/** Makes what lacks of the path; the names of new folders reach the disk. */
void make_folders_durably(const std::filesystem::path& folder);

/** All of it into the file at its present place. */
void write_all(int file, std::string_view bytes, const std::filesystem::path& path);

void sync_file(int file, const std::filesystem::path& path);

[[noreturn]] void fail_file(const char* what, const std::filesystem::path& path, int error);

} // namespace parallm
