// The PTX in the repository is the one that its source gives.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <string>

namespace baton::test {
namespace {

TEST(Ptx, IsMadeFromItsSource) {
  const std::string root = BATON_SOURCE_FOLDER;
  // The project's own environment has NVRTC; without it the script still compares the digest of the sources.
  const std::string python =
      std::system(("test -x " + root + "/.venv/bin/python").c_str()) == 0 ? root + "/.venv/bin/python" : "python3";
  if (std::system((python + " -c '' 2>/dev/null").c_str()) != 0) GTEST_SKIP() << "there is no Python";
  const int status = std::system((python + " " + root + "/scripts/make_ptx.py --check").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 0) << "run scripts/make_ptx.py";
}

}  // namespace
}  // namespace baton::test
