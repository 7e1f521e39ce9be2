// Errors and results: what goes out is valid JSON, and what is taken is there.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "native/driver/error.h"

namespace baton::test {
namespace {

Error named(const std::string& code) {
  Error error;
  error.code = code;
  return error;
}

TEST(ErrorJson, HasItsFiveFieldsInOrder) {
  const Error error{.code = "A", .message = "b", .expected = "c", .found = "d", .action = "e", .driver_result = 2};
  EXPECT_EQ(to_json(error), R"({"code": "A", "message": "b", "expected": "c", "found": "d", "action": "e"})");
}

TEST(ErrorJson, EscapesWhatJsonCannotHold) {
  Error error = named("A");
  error.message = "say \"hi\" to C:\\\n\tend\x01";
  EXPECT_NE(to_json(error).find(R"("say \"hi\" to C:\\\n\u0009end\u0001")"), std::string::npos) << to_json(error);
}

TEST(ErrorJson, KeepsGoodUtf8AndReplacesTheRest) {
  Error error = named("A");
  error.found =
      "Gr\xc3\xbc\xc3\x9f"
      "e \xe2\x82\xac \xf0\x9f\x98\x80";
  EXPECT_NE(to_json(error).find(error.found), std::string::npos);
  // A lone continuation, a truncated sequence, an overlong one, a surrogate, and one above U+10FFFF.
  for (const std::string bad : {"\x80", "\xe2\x82", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80"}) {
    error.found = bad;
    const std::string json = to_json(error);
    EXPECT_NE(json.find("\\ufffd"), std::string::npos) << json;
    for (const char c : json)
      EXPECT_LT(static_cast<unsigned char>(c), 0x80U) << json;
  }
}

Result<int> half(int number) {
  if (number % 2 != 0) return named("ODD");
  return number / 2;
}

Result<std::string> quarter_in_words(int number) {
  BATON_ASSIGN(const int once, half(number));
  BATON_ASSIGN(const int twice, half(once));
  return std::to_string(twice);
}

Status must_be_even(int number) {
  BATON_TRY(half(number));
  return {};
}

TEST(Results, PassValuesAndErrorsOn) {
  EXPECT_EQ(quarter_in_words(12).value(), "3");
  EXPECT_EQ(quarter_in_words(6).error().code, "ODD");
  EXPECT_TRUE(must_be_even(4).ok());
  EXPECT_EQ(must_be_even(5).error().code, "ODD");
}

TEST(Results, HoldWhatCanOnlyBeMoved) {
  Result<std::unique_ptr<int>> result(std::make_unique<int>(7));
  const std::unique_ptr<int> taken = std::move(result).value();
  EXPECT_EQ(*taken, 7);
}

using ResultsDeathTest = ::testing::Test;

TEST(ResultsDeathTest, TakingWhatIsNotThereEndsTheProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(static_cast<void>(half(3).value()), "");
  EXPECT_DEATH(static_cast<void>(half(4).error()), "");
  EXPECT_DEATH(static_cast<void>(must_be_even(4).error()), "");
}

}  // namespace
}  // namespace baton::test
