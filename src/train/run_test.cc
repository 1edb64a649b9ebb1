#include "train/run.h"

#include <ATen/ATen.h>

#include <fstream>

#include "core/error.h"
#include "core/file.h"
#include "core/run_mark.h"
#include "core/safetensors.h"
#include "testing/run_content.h"
#include "testing/temporary_folder.h"
#include "testing/testing.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSteps = 7;

TrainConfig config_of(const Json& more = Json::object()) {
  TrainConfig config;
  Json fields = {{"steps", kSteps}, {"batch_size", 2}, {"context", 13},   {"segment", 5},
                 {"log_every", 2},  {"eval_every", 3}, {"save_every", 2}, {"keep", 2}};
  fields.update(more);
  config.read(fields, "test");
  return config;
}

Batch batch_of(int64_t number) {
  const Tensor tokens = normal({2, 14}, 100 + static_cast<uint64_t>(number)).mul(1000).to(at::kLong).remainder(29);
  return {tokens.slice(1, 0, 13), tokens.slice(1, 1, 14), at::ones({2, 13}), {}};
}

constexpr const char* kLayers =
    "performer(num_attention_heads=3, num_features=5, redraw_interval=3), "
    "ttt_linear(num_attention_heads=3, mini_batch_size=4), "
    "vq_attention(num_attention_heads=3, num_codes=4, window=3, chunk_size=2, restart_below=0.7)";

std::unique_ptr<Trainer> trainer_of(const TrainConfig& config, const char* layers = kLayers) {
  at::manual_seed(5);
  LanguageModelConfig model;
  model.vocab_size = 29;
  model.hidden_size = 12;
  model.intermediate_size = 20;
  model.layers = parse_plan(layers);
  TrainData data;
  data.batch = batch_of;
  data.validation = [](int64_t number) { return batch_of(1000 + number); };
  data.validation_batches = 2;
  return std::make_unique<Trainer>(std::make_shared<LanguageModel>(model), config, data);
}

Reporter quiet;

/// Trains until `stop_at` steps are made; true when the run is done.
bool run_until(RunFolder& folder, int64_t stop_at, const Json& more = Json::object()) {
  const auto trainer = trainer_of(config_of(more));
  if (folder.newest()) at::rand({17});  // a process that resumes has another random state
  const double elapsed = restore(*trainer, folder);
  return train(*trainer, folder, elapsed, quiet, [&] { return trainer->steps_done() >= stop_at; });
}

TEST(Run, ResumedAtAnyStepEqualsUninterruptedBitForBit) {
  const TemporaryFolder folder;
  run_until(*RunFolder::create(folder / "whole", {{"a", 1}}), 1 << 20);
  const auto whole = run_content(folder / "whole");
  ASSERT_TRUE(whole.contains("checkpoints/step-7/optimizer.safetensors"));
  ASSERT_TRUE(whole.contains("checkpoints/step-6/model.safetensors"));
  EXPECT_FALSE(whole.contains("checkpoints/step-4/model.safetensors"));  // keep 2
  for (int64_t stop = 1; stop < kSteps; ++stop) {
    const fs::path path = folder / ("cut" + std::to_string(stop));
    EXPECT_FALSE(run_until(*RunFolder::create(path, {{"a", 1}}), stop));
    EXPECT_TRUE(run_until(*RunFolder::open(path), 1 << 20));
    const auto found = run_content(path);
    for (const auto& [name, bytes] : whole) {
      ASSERT_TRUE(found.contains(name)) << name;
      EXPECT_TRUE(found.at(name) == bytes) << name << " differs after stopping at " << stop;
    }
    EXPECT_EQ(found.size(), whole.size()) << stop;
  }
}

/// The first layer's projection is drawn anew before steps 4 and 7.
TEST(Run, WhatChangesByTheClockIsSaved) {
  const TemporaryFolder folder;
  run_until(*RunFolder::create(folder / "run", Json::object()), 1 << 20, {{"save_every", 1}, {"keep", 7}});
  std::vector<int64_t> redrawn;
  Tensor last;
  for (int64_t step = 1; step <= kSteps; ++step) {
    const fs::path file = folder / "run" / "checkpoints" / text("step-", step) / "model.safetensors";
    const Tensor rows =
        load_safetensors(file).at("model.layers.0.seq_modeling_block.projection_matrix", file.string()).clone();
    if (last.defined() && !at::equal(rows, last)) redrawn.push_back(step);
    last = rows;
  }
  EXPECT_EQ(redrawn, (std::vector<int64_t>{4, 7}));
}

/// The codebook follows the keys of the step before, which a checkpoint holds until then.
TEST(Run, WhatFollowsTheTokensIsSaved) {
  const TemporaryFolder folder;
  run_until(*RunFolder::create(folder / "run", Json::object()), 1 << 20, {{"save_every", 1}, {"keep", 7}});
  Tensor last;
  for (int64_t step = 1; step <= kSteps; ++step) {
    const fs::path file = folder / "run" / "checkpoints" / text("step-", step) / "model.safetensors";
    const SafeTensors model = load_safetensors(file);
    const auto of = [&](const std::string& name) {
      return model.at("model.layers.2.seq_modeling_block." + name, file.string()).clone();
    };
    EXPECT_EQ(of("step_count").sum().item<double>(), 3 * 26) << step;  // of 3 heads, and of no step before
    EXPECT_EQ(last.defined() && at::equal(of("code_sum"), last), false) << step;
    last = of("code_sum");
  }
}

/// AdamW's first step moves every element by its learning rate.
TEST(Run, MixersKeepTheirPace) {
  const TrainConfig config = config_of({{"lr", 0.05}, {"schedule", "constant"}, {"warmup", 0}, {"weight_decay", 0.5}});
  const auto trainer = trainer_of(config, "s4d(state_size=4, lr=0.0001), s4d(state_size=4, lr=1)");
  const auto steps = [&] {
    std::vector<Tensor> found;
    for (const auto& block : trainer->model().blocks()) {
      found.push_back(block->mixer().named_parameters()["kernel.inv_dt"].detach().clone());
    }
    return found;
  };
  const auto before = steps();
  trainer->step();
  const auto after = steps();
  EXPECT_NEAR((after[0] - before[0]).abs().max().item<double>(), 1e-4, 2e-6);
  EXPECT_NEAR((after[1] - before[1]).abs().max().item<double>(), 0.05, 1e-3);
}

TEST(Run, MetricsBeyondTheCheckpointAndLeftoversOfAKilledWriteGo) {
  const TemporaryFolder folder;
  const fs::path whole = folder / "whole", cut = folder / "cut";
  run_until(*RunFolder::create(whole, Json::object()), 1 << 20);
  run_until(*RunFolder::create(cut, Json::object()), 4);
  std::ofstream(cut / "metrics.jsonl", std::ios::app) << "{\"step\":6,\"loss\":1}\n{\"st";
  fs::create_directories(cut / "checkpoints/.step-6.writing");
  std::ofstream(cut / "checkpoints/.step-6.writing/model.safetensors") << "half";
  fs::create_directories(cut / "checkpoints/.step-2.removing");
  std::ofstream(cut / ".lineal-99-0.tmp") << "half";
  EXPECT_TRUE(run_until(*RunFolder::open(cut), 1 << 20));
  EXPECT_EQ(run_content(cut), run_content(whole));
}

TEST(Run, MetricsHoldWhatWasMeasured) {
  const TemporaryFolder folder;
  run_until(*RunFolder::create(folder / "run", Json::object()), 1 << 20);
  std::istringstream lines(read_file(folder / "run" / "metrics.jsonl"));
  std::vector<int64_t> steps;
  for (std::string text; std::getline(lines, text);) {
    const Json line = Json::parse(text);
    const auto step = line["step"].get<int64_t>();
    steps.push_back(step);
    EXPECT_EQ(line["tokens"], step * 26);
    EXPECT_NEAR(line["bits_per_token"].get<double>() * std::log(2.0), line["loss"].get<double>(), 1e-12);
    EXPECT_EQ(line.contains("validation_loss"), step % 3 == 0 || step == kSteps) << step;
    for (const char* name :
         {"layers.1.inner_loss_after", "layers.2.commitment", "layers.2.codes_used", "layers.2.code_perplexity"}) {
      EXPECT_EQ(line.contains(name), step % 2 == 0 || step == kSteps) << name << " " << step;
    }
    for (const char* name : {"lr", "grad_norm", "tokens_per_second", "elapsed"}) EXPECT_TRUE(line.contains(name));
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{2, 3, 4, 6, 7}));
}

TEST(Run, AFolderIsNotUsedTwice) {
  const TemporaryFolder folder;
  const fs::path path = folder / "run";
  {
    const auto run = RunFolder::create(path, Json::object());
    EXPECT_TRUE(throws_error([&] { RunFolder::open(path); }, {"another process", path.string()}));
  }
  RunFolder::create(path, Json::object())->save(3, 0, 1, [](const fs::path&) {});
  EXPECT_TRUE(throws_error([&] { RunFolder::create(path, Json::object()); }, {"--resume", path.string()}));
  EXPECT_TRUE(throws_error([&] { RunFolder::open(folder / "none"); }, {"no run to resume", "config.json"}));
  fs::create_directories(folder / "full");
  std::ofstream(folder / "full" / "notes.txt") << "mine";
  EXPECT_TRUE(throws_error([&] { RunFolder::create(folder / "full", Json::object()); }, {"not empty", "notes.txt"}));
  EXPECT_TRUE(throws_error([&] { RunFolder::create(folder / "full/notes.txt/run", Json::object()); }, {"notes.txt"}));
}

TEST(Run, OneWithoutACheckpointGivesItsFolderUp) {
  const TemporaryFolder folder;
  const fs::path path = folder / "run";
  RunFolder::create(path, {{"a", 1}})->add_metrics({{"step", 1}});
  const auto again = [&] { return RunFolder::reserve(path); };
  fs::create_directories(path / "checkpoints/.step-3.writing");
  write_atomic(path / "notes.txt", "mine");
  EXPECT_TRUE(throws_error(again, {"not empty", "notes.txt"}));
  fs::remove(path / "notes.txt");
  write_atomic(path / "checkpoints/notes.txt", "mine");
  EXPECT_TRUE(throws_error(again, {"not empty", "notes.txt"}));
  fs::remove(path / "checkpoints/notes.txt");
  again();
  EXPECT_EQ(RunFolder::open(path)->config(), Json({{"a", 1}}));
  {
    const auto run = again();
    EXPECT_TRUE(throws_error(again, {"another process"}));
    run->set_config({{"b", 2}});
    EXPECT_TRUE(run->rewind_metrics({}).is_null());
    EXPECT_TRUE(fs::is_empty(path / "checkpoints"));
  }
  EXPECT_EQ(RunFolder::open(path)->config(), Json({{"b", 2}}));
  EXPECT_EQ(fs::file_size(path / "metrics.jsonl"), 0u);
  write_atomic(path / "config.json", "{\"model_type\": \"lineal\"}");
  EXPECT_TRUE(throws_error(again, {"not empty"}));
}

TEST(Run, OldCheckpointsAndThoseBetweenTheRegularOnesGo) {
  const TemporaryFolder folder;
  const auto names_after = [&](const std::string& name, int64_t keep) {
    const auto run = RunFolder::create(folder / name, Json::object());
    for (const int64_t step : {3, 5, 6, 9, 11}) run->save(step, keep, 3, [](const fs::path&) {});
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder / name / "checkpoints")) {
      names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  };
  EXPECT_EQ(names_after("all", 0), (std::vector<std::string>{"step-11", "step-3", "step-6", "step-9"}));
  EXPECT_EQ(names_after("two", 2), (std::vector<std::string>{"step-11", "step-9"}));
}

TEST(Run, AFailedWriteLeavesNoCheckpoint) {
  const TemporaryFolder folder;
  const auto run = RunFolder::create(folder / "run", Json::object());
  const auto write = [](const fs::path& dir) {
    write_atomic(dir / "model.safetensors", "half");
    fail("no space left");
  };
  EXPECT_TRUE(throws_error([&] { run->save(3, 0, 1, write); }, {"no space left"}));
  EXPECT_TRUE(fs::is_empty(folder / "run" / "checkpoints"));
  EXPECT_FALSE(run->newest());
}

TEST(Run, DamagedCheckpointsAreErrorsThatNameTheFile) {
  const TemporaryFolder folder;
  const fs::path path = folder / "run", last = path / "checkpoints/step-2";
  run_until(*RunFolder::create(path, Json::object()), 2);
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "trainer.json"}) {
    const std::string whole = read_file(last / name);
    for (const size_t size : {size_t{0}, size_t{5}, whole.size() / 2, whole.size() - 3}) {
      write_atomic(last / name, whole.substr(0, size));
      const auto run = RunFolder::open(path);
      EXPECT_TRUE(throws_error([&] { restore(*trainer_of(config_of()), *run); }, {(last / name).string()})) << size;
    }
    write_atomic(last / name, whole);
  }
  const auto run = RunFolder::open(path);
  write_atomic(last / "trainer.json", "{\"step\": 1, \"metrics_lines\": 1}");
  EXPECT_TRUE(throws_error([&] { restore(*trainer_of(config_of()), *run); }, {"step is 1, expected 2"}));
  write_atomic(last / "trainer.json", "{\"step\": 2, \"metrics_lines\": 1000}");
  EXPECT_TRUE(throws_error([&] { restore(*trainer_of(config_of()), *run); }, {"metrics.jsonl", "1000"}));
  write_atomic(last / "trainer.json", "{\"step\": 2, \"metrics_lines\": -1}");
  EXPECT_TRUE(throws_error([&] { restore(*trainer_of(config_of()), *run); }, {"metrics_lines is -1"}));
}

TEST(Run, AReservedFolderIsARunOnlyOnceItIsToldSomething) {
  const TemporaryFolder folder;
  const fs::path path = folder / "a/b/run";
  {
    const auto run = RunFolder::reserve(path);
    EXPECT_TRUE(throws_error([&] { RunFolder::reserve(path); }, {"another process"}));
    EXPECT_FALSE(is_run(path));
  }
  EXPECT_TRUE(folder.names().empty());
  fs::create_directories(folder / "mine");
  RunFolder::reserve(folder / "mine");
  EXPECT_TRUE(fs::exists(folder / "mine"));
  RunFolder::reserve(path)->set_config({{"a", 1}});
  EXPECT_TRUE(is_run(path));
  EXPECT_EQ(RunFolder::open(path)->config(), Json({{"a", 1}}));
  write_atomic(path / "config.json", "{\"a\": 1}");
  EXPECT_TRUE(throws_error([&] { RunFolder::open(path); }, {"no run to resume", "format"}));
}

}  // namespace
}  // namespace lineal
