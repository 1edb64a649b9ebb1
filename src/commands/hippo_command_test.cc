// lineal hippo as a user runs it.
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "core/config.h"
#include "testing/program.h"

namespace lineal {
namespace {

class HippoCommand : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return (folder / name).string(); }
  ProgramResult hippo(std::vector<std::string> args) const {
    args.insert(args.begin(), {"hippo", "-o", path("out.csv")});
    return run_program(args, folder.path());
  }
  /// Columns of the table.
  std::vector<std::vector<double>> table() const {
    std::istringstream lines(read_file(folder / "out.csv"));
    std::string line;
    std::getline(lines, line);
    EXPECT_EQ(line, "time,signal,reconstruction,error");
    std::vector<std::vector<double>> columns(4);
    while (std::getline(lines, line)) {
      std::istringstream cells(line);
      for (auto& column : columns) {
        std::string cell;
        std::getline(cells, cell, ',');
        column.push_back(std::stod(cell));
      }
    }
    return columns;
  }
  TemporaryFolder folder;
};

TEST_F(HippoCommand, WritesWhatItSays) {
  const ProgramResult run = hippo({"--length", "301", "--order", "40", "--seed", "5", "--json"});
  ASSERT_EQ(run.code, 0) << run.err;
  const Json said = Json::parse(run.out);
  const auto columns = table();
  ASSERT_EQ(columns[0].size(), 301u);
  EXPECT_EQ(said["recalled"], 301);
  double sum = 0, largest = 0;
  for (size_t k = 0; k < 301; ++k) {
    EXPECT_EQ(columns[0][k], static_cast<double>(k) + 0.5);
    EXPECT_NEAR(columns[3][k], columns[2][k] - columns[1][k], 1e-8);
    sum += columns[3][k] * columns[3][k];
    largest = std::max(largest, std::abs(columns[3][k]));
  }
  EXPECT_NEAR(said["rms_error"].get<double>(), std::sqrt(sum / 301), 1e-8);
  EXPECT_NEAR(said["largest_error"].get<double>(), largest, 1e-8);
  EXPECT_LE(said["rms_error"].get<double>(), said["rms_error_bound"].get<double>());
  EXPECT_LT(said["rms_error_bound"].get<double>(), 0.05);
}

TEST_F(HippoCommand, TheErrorFallsWithTheOrderAndTheSeedDrawsTheSignal) {
  const auto error = [&](const std::string& measure, const std::string& order, const std::string& seed) {
    const ProgramResult run =
        hippo({"--measure", measure, "--order", order, "--seed", seed, "--length", "400", "--json"});
    EXPECT_EQ(run.code, 0) << run.err;
    return Json::parse(run.out)["rms_error"].get<double>();
  };
  for (const char* measure : {"legs", "legt", "fourier"})
    EXPECT_LT(error(measure, "48", "1"), 0.5 * error(measure, "8", "1"));
  const double other = error("legs", "8", "2");
  EXPECT_EQ(other, error("legs", "8", "2"));
  EXPECT_NE(other, error("legs", "8", "1"));
}

TEST_F(HippoCommand, ReadsNumbersAndAWindowOfThem) {
  std::string numbers;
  for (int k = 0; k < 90; ++k) numbers += std::to_string(k < 60 ? 7 : 3) + (k % 3 == 0 ? "\n" : ", ");
  write_atomic(folder / "in.txt", numbers);
  const ProgramResult run = hippo({path("in.txt"), "--measure", "legt", "--order", "6", "--window", "20"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_NE(run.out.find("read 90 samples, recalled the last 20"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("wrote " + path("out.csv") + "; .venv/bin/python bench/plot_hippo.py"), std::string::npos)
      << run.out;
  EXPECT_EQ(run.out.find("at most"), std::string::npos) << run.out;
  const auto columns = table();
  ASSERT_EQ(columns[0].size(), 20u);
  EXPECT_EQ(columns[0][0], 70.5);
  for (size_t k = 0; k < 20; ++k) {
    EXPECT_EQ(columns[1][k], 3);
    EXPECT_NEAR(columns[2][k], 3, 0.5);
  }
}

TEST_F(HippoCommand, RefusesWhatCannotBe) {
  write_atomic(folder / "words.txt", "1 2 three");
  write_atomic(folder / "empty.txt", " \n");
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--measure", "leg"}, "measure"},
      {{"--window", "20"}, "legs reaches back to the start"},
      {{"--measure", "legt", "--window", "0.5"}, "window is 0.5, expected at least one sample"},
      {{path("words.txt"), "--seed", "3"}, "--seed is of a generated signal"},
      {{"--measure", "fourier", "--order", "7"},
       "hippo: --order 7, but fourier pairs a cosine with a sine; expected an even one"},
      {{path("words.txt")}, "'three' is no number"},
      {{path("empty.txt")}, "holds no numbers"},
      {{path("none.txt")}, "none.txt"},
      {{"--measure", "legt", "--window", "20", "--discretization", "forward_euler"}, "grew without bound"},
  };
  for (const auto& [args, part] : cases) {
    const ProgramResult run = hippo(args);
    EXPECT_EQ(run.code, 2);
    EXPECT_NE(run.err.find(part), std::string::npos) << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    EXPECT_FALSE(std::filesystem::exists(folder / "out.csv"));
  }
  write_atomic(folder / "out.csv", "1 2 3");
  EXPECT_NE(hippo({path("out.csv")}).err.find("is the file that is read"), std::string::npos);
  EXPECT_EQ(read_file(folder / "out.csv"), "1 2 3");
}

}  // namespace
}  // namespace lineal
