// Driver libraries made for one test: a few lines of C++, compiled when the test runs. So a table meets drivers that
// no machine has: old ones, odd ones, ones that lack a function.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace baton::test {

class MadeLibrary {
 public:
  explicit MadeLibrary(const std::string& source) {
    std::string pattern = (std::filesystem::temp_directory_path() / "baton-driver-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    folder_ = pattern;
    const auto source_file = folder_ / "library.cc";
    std::ofstream(source_file) << "#include <cstdint>\n#include <cstring>\n" << source;
    const char* compiler = std::getenv("CXX");
    const std::string command = std::string(compiler != nullptr ? compiler : "c++") + " -shared -fPIC -w -o " + path() +
                                " " + source_file.string();
    if (std::system(command.c_str()) != 0) ADD_FAILURE() << "cannot compile: " << command;
  }
  ~MadeLibrary() { std::filesystem::remove_all(folder_); }
  MadeLibrary(const MadeLibrary&) = delete;
  MadeLibrary& operator=(const MadeLibrary&) = delete;

  std::string path() const { return (folder_ / "library.so").string(); }

 private:
  std::filesystem::path folder_;
};

}  // namespace baton::test
