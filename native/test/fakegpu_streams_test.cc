// Streams, events and the speed model. This program runs in lazy mode: work is done when somebody waits for it.
#include "native/copy/kernels.h"
#include "native/test/fakegpu_support.h"

namespace baton::test {
namespace {

const auto* const table = ::testing::AddGlobalTestEnvironment(new StandinTable(
    {{"BATON_STANDIN_ASYNC", "lazy"}, {"BATON_STANDIN_BANDWIDTH", "pinned=10,pageable=1,device=100,peer=20"}}));

constexpr uint64_t kBytes = 4'000'000;  // 400 us pinned, 4 ms pageable, 40 us within a device, 200 us to a peer

class Streams : public ::testing::Test {
 protected:
  void SetUp() override {
    client.use(0);
    ASSERT_EQ(cuda.cuMemAlloc.raw(&device, kBytes), cuda::kSuccess);
    ASSERT_EQ(cuda.cuMemAlloc.raw(&other, kBytes), cuda::kSuccess);
    ASSERT_EQ(cuda.cuMemHostAlloc.raw(&pinned, kBytes, 0), cuda::kSuccess);
    std::memset(pinned, 5, kBytes);
    ASSERT_EQ(cuda.cuStreamCreate.raw(&stream, cuda::kStreamNonBlocking), cuda::kSuccess);
    ASSERT_EQ(cuda.cuStreamCreate.raw(&second, cuda::kStreamNonBlocking), cuda::kSuccess);
  }
  void TearDown() override {
    cuda.cuStreamDestroy.raw(stream);
    cuda.cuStreamDestroy.raw(second);
    cuda.cuMemFreeHost.raw(pinned);
    cuda.cuMemFree.raw(device);
    cuda.cuMemFree.raw(other);
    cuda.cuDevicePrimaryCtxRelease.raw(0);
  }
  static unsigned char first_byte(uint64_t address) { return *reinterpret_cast<volatile unsigned char*>(address); }
  void to_device(uint64_t to, cuda::Stream in) {
    ASSERT_EQ(cuda.cuMemcpyHtoDAsync.raw(to, pinned, kBytes, in), cuda::kSuccess);
  }
  // The model's time for what is submitted to the stream and waited for, in us.
  template <class Submit>
  uint64_t model_us(cuda::Stream in, Submit submit) {
    const uint64_t before = cuda.simulated_ns(in);
    submit();
    EXPECT_EQ(cuda.cuStreamSynchronize.raw(in), cuda::kSuccess);
    return (cuda.simulated_ns(in) - before) / 1000;
  }

  Client client;
  const cuda::CudaDriver& cuda = client.cuda;
  cuda::DevicePointer device = 0;
  cuda::DevicePointer other = 0;
  void* pinned = nullptr;
  cuda::Stream stream = nullptr;
  cuda::Stream second = nullptr;
};

TEST_F(Streams, AreMarkedAsSimulated) {
  EXPECT_TRUE(cuda.simulated());
}

TEST_F(Streams, WorkIsDoneWhenItIsWaitedFor) {
  to_device(device, stream);
  EXPECT_EQ(first_byte(device), 0) << "nobody has waited";
  ASSERT_EQ(cuda.cuStreamSynchronize.raw(stream), cuda::kSuccess);
  EXPECT_EQ(first_byte(device), 5);
}

TEST_F(Streams, AQueryIsAnsweredInTheEnd) {
  to_device(device, stream);
  EXPECT_EQ(cuda.cuStreamQuery.raw(stream), cuda::kNotReady);
  EXPECT_EQ(cuda.cuStreamQuery.raw(stream), cuda::kSuccess);
  EXPECT_EQ(first_byte(device), 5);
}

TEST_F(Streams, AnEventStandsForWhatWasBeforeIt) {
  cuda::Event event = nullptr;
  ASSERT_EQ(cuda.cuEventCreate.raw(&event, 0), cuda::kSuccess);
  EXPECT_EQ(cuda.cuEventQuery.raw(event), cuda::kSuccess) << "never recorded";
  to_device(device, stream);
  ASSERT_EQ(cuda.cuEventRecord.raw(event, stream), cuda::kSuccess);
  EXPECT_EQ(cuda.cuEventQuery.raw(event), cuda::kNotReady);
  ASSERT_EQ(cuda.cuEventSynchronize.raw(event), cuda::kSuccess);
  EXPECT_EQ(cuda.cuEventQuery.raw(event), cuda::kSuccess);
  EXPECT_EQ(first_byte(device), 5);
  EXPECT_EQ(cuda.cuEventDestroy.raw(event), cuda::kSuccess);
  EXPECT_EQ(cuda.cuEventQuery.raw(event), cuda::kInvalidHandle);
}

TEST_F(Streams, AStreamCanWaitForAnother) {
  cuda::Event copied = nullptr;
  ASSERT_EQ(cuda.cuEventCreate.raw(&copied, 0), cuda::kSuccess);
  to_device(device, stream);
  ASSERT_EQ(cuda.cuEventRecord.raw(copied, stream), cuda::kSuccess);
  ASSERT_EQ(cuda.cuStreamWaitEvent.raw(second, copied, 0), cuda::kSuccess);
  ASSERT_EQ(cuda.cuMemcpyDtoDAsync.raw(other, device, kBytes, second), cuda::kSuccess);
  ASSERT_EQ(cuda.cuStreamSynchronize.raw(second), cuda::kSuccess);
  EXPECT_EQ(first_byte(other), 5);
  cuda.cuEventDestroy.raw(copied);
}

TEST_F(Streams, TheDefaultStreamWaitsForBlockingOnesOnly) {
  cuda::Stream blocking = nullptr;
  ASSERT_EQ(cuda.cuStreamCreate.raw(&blocking, cuda::kStreamDefault), cuda::kSuccess);
  to_device(device, blocking);
  to_device(other, stream);
  std::array<unsigned char, 1> byte{};
  ASSERT_EQ(cuda.cuMemcpyDtoH.raw(byte.data(), device, 1), cuda::kSuccess);
  EXPECT_EQ(byte[0], 5);
  EXPECT_EQ(first_byte(other), 0) << "a non-blocking stream is not waited for";
  cuda.cuStreamSynchronize.raw(stream);
  cuda.cuStreamDestroy.raw(blocking);
}

TEST_F(Streams, PageableMemoryIsCopiedBeforeTheCallReturns) {
  std::vector<unsigned char> pageable(kBytes, 9);
  ASSERT_EQ(cuda.cuMemcpyHtoDAsync.raw(device, pageable.data(), kBytes, stream), cuda::kSuccess);
  EXPECT_EQ(first_byte(device), 9);
}

TEST_F(Streams, ModelTakesTheStatedBandwidths) {
  EXPECT_EQ(model_us(stream, [&] { to_device(device, stream); }), 400U);
  EXPECT_EQ(model_us(stream, [&] { cuda.cuMemcpyDtoHAsync.raw(pinned, device, kBytes, stream); }), 400U);
  EXPECT_EQ(model_us(stream, [&] { cuda.cuMemcpyDtoDAsync.raw(other, device, kBytes, stream); }), 40U);
  EXPECT_EQ(model_us(stream, [&] { cuda.cuMemsetD8Async.raw(other, 0, kBytes, stream); }), 40U);
  std::vector<char> pageable(kBytes);
  EXPECT_EQ(model_us(stream, [&] { cuda.cuMemcpyHtoDAsync.raw(device, pageable.data(), kBytes, stream); }), 4000U);
}

TEST_F(Streams, ModelKnowsPeers) {
  client.use(1);
  cuda::DevicePointer peer = 0;
  ASSERT_EQ(cuda.cuMemAlloc.raw(&peer, kBytes), cuda::kSuccess);
  cuda::Stream on_peer = nullptr;
  ASSERT_EQ(cuda.cuStreamCreate.raw(&on_peer, cuda::kStreamNonBlocking), cuda::kSuccess);
  EXPECT_EQ(model_us(on_peer, [&] { cuda.cuMemcpyDtoDAsync.raw(peer, device, kBytes, on_peer); }), 200U);
  cuda.cuStreamDestroy.raw(on_peer);
  cuda.cuMemFree.raw(peer);
  cuda.cuDevicePrimaryCtxRelease.raw(1);
  client.use(0);
}

TEST_F(Streams, OneEngineIsSharedAndTwoWorkAtOnce) {
  // Both to the device: one after the other.
  EXPECT_EQ(model_us(second,
                     [&] {
                       to_device(device, stream);
                       to_device(other, second);
                       cuda.cuStreamSynchronize.raw(stream);
                     }),
            800U);
  // One each way: at once.
  EXPECT_EQ(model_us(second,
                     [&] {
                       to_device(device, stream);
                       cuda.cuMemcpyDtoHAsync.raw(pinned, other, kBytes, second);
                       cuda.cuStreamSynchronize.raw(stream);
                     }),
            400U);
}

TEST_F(Streams, EventsMeasureTheModelsTime) {
  cuda::Event start = nullptr;
  cuda::Event end = nullptr;
  ASSERT_EQ(cuda.cuEventCreate.raw(&start, 0), cuda::kSuccess);
  ASSERT_EQ(cuda.cuEventCreate.raw(&end, 0), cuda::kSuccess);
  float ms = -1;
  EXPECT_EQ(cuda.cuEventElapsedTime.raw(&ms, start, end), cuda::kInvalidHandle) << "never recorded";
  cuda.cuEventRecord.raw(start, stream);
  to_device(device, stream);
  cuda.cuEventRecord.raw(end, stream);
  EXPECT_EQ(cuda.cuEventElapsedTime.raw(&ms, start, end), cuda::kNotReady);
  ASSERT_EQ(cuda.cuEventSynchronize.raw(end), cuda::kSuccess);
  ASSERT_EQ(cuda.cuEventElapsedTime.raw(&ms, start, end), cuda::kSuccess);
  EXPECT_FLOAT_EQ(ms, 0.4F);
  cuda.cuEventDestroy.raw(start);
  cuda.cuEventDestroy.raw(end);
}

TEST_F(Streams, HostFunctionsRunInOrder) {
  struct Seen {
    uint64_t address;
    int byte;
  } seen{device, -1};
  to_device(device, stream);
  ASSERT_EQ(cuda.cuLaunchHostFunc.raw(
                stream,
                [](void* data) {
                  auto* own = static_cast<Seen*>(data);
                  own->byte = first_byte(own->address);
                },
                &seen),
            cuda::kSuccess);
  EXPECT_EQ(seen.byte, -1);
  cuda.cuStreamSynchronize.raw(stream);
  EXPECT_EQ(seen.byte, 5);
}

// What a module of Baton's looks like to a driver, without the code that a stand-in never reads.
constexpr char kModule[] =
    "// .entry in a comment(\n.version 8.0\n.target sm_90\n.address_size 64\n"
    ".visible .entry baton_copy_runs(\n.param .align 8 .b8 p[24]\n)\n{ ret; }\n"
    ".visible .entry baton_copy_range(\n.param .align 8 .b8 p[24]\n)\n{ ret; }\n"
    ".visible .entry somebody_elses(\n)\n{ ret; }\n";

TEST_F(Streams, KnownKernelsRunAsFunctionsInTheirStream) {
  cuda::Module module = nullptr;
  ASSERT_EQ(cuda.cuModuleLoadData.raw(&module, kModule), cuda::kSuccess);
  cuda::Function function = nullptr;
  ASSERT_EQ(cuda.cuModuleGetFunction.raw(&function, module, copy::kCopyRunsKernel), cuda::kSuccess);

  // Two rows of a matrix, taken apart.
  constexpr auto kPlain = copy::Conversion::kNone;
  const std::array<copy::CopyPiece, 2> pieces{copy::CopyPiece{0, 1000, kPlain, 0, other},
                                              {0, 1000, kPlain, 3000, other + 1000}};
  const std::array<uint64_t, 1> bases{device};
  cuda::DevicePointer arguments = 0;
  ASSERT_EQ(cuda.cuMemAlloc.raw(&arguments, kPiece), cuda::kSuccess);
  ASSERT_EQ(cuda.cuMemcpyHtoDAsync.raw(arguments, pieces.data(), sizeof(pieces), stream), cuda::kSuccess);
  ASSERT_EQ(cuda.cuMemcpyHtoDAsync.raw(arguments + 4096, bases.data(), sizeof(bases), stream), cuda::kSuccess);
  to_device(device, stream);
  copy::CopyRunsParameters parameters{reinterpret_cast<const copy::CopyPiece*>(arguments),
                                      reinterpret_cast<const uint64_t*>(arguments + 4096), pieces.size()};
  std::array<void*, 1> kernel_parameters{&parameters};
  ASSERT_EQ(cuda.cuLaunchKernel.raw(function, 8, 1, 1, copy::kBlockThreads, 1, 1, 0, stream, kernel_parameters.data(),
                                    nullptr),
            cuda::kSuccess);
  parameters = {};  // the launch has its own
  EXPECT_EQ(first_byte(other), 0);
  ASSERT_EQ(cuda.cuStreamSynchronize.raw(stream), cuda::kSuccess);
  EXPECT_EQ(first_byte(other), 5);
  EXPECT_EQ(first_byte(other + 1999), 5);
  EXPECT_EQ(first_byte(other + 2000), 0);
  EXPECT_EQ(cuda.cuLaunchKernel.raw(function, 8, 1, 1, 2048, 1, 1, 0, stream, kernel_parameters.data(), nullptr),
            cuda::kInvalidValue)
      << "more threads than a block may have";
  EXPECT_EQ(cuda.cuModuleUnload.raw(module), cuda::kSuccess);
  cuda.cuMemFree.raw(arguments);
}

TEST_F(Streams, AKernelThatReadsTheHostIsAsFastAsTheLink) {
  cuda::Module module = nullptr;
  ASSERT_EQ(cuda.cuModuleLoadData.raw(&module, kModule), cuda::kSuccess);
  cuda::Function function = nullptr;
  ASSERT_EQ(cuda.cuModuleGetFunction.raw(&function, module, copy::kCopyRangeKernel), cuda::kSuccess);
  const auto copied_us = [&](uint64_t source) {
    copy::CopyRangeParameters parameters{source, other, kBytes};
    std::array<void*, 1> kernel_parameters{&parameters};
    return model_us(stream, [&] {
      ASSERT_EQ(cuda.cuLaunchKernel.raw(function, 8, 1, 1, copy::kBlockThreads, 1, 1, 0, stream,
                                        kernel_parameters.data(), nullptr),
                cuda::kSuccess);
    });
  };
  const uint64_t from_host = copied_us(reinterpret_cast<uint64_t>(pinned));
  EXPECT_EQ(first_byte(other + kBytes - 1), 5);
  const uint64_t by_engine = model_us(stream, [&] { to_device(other, stream); });
  EXPECT_NEAR(static_cast<double>(from_host), static_cast<double>(by_engine), 1.0 + 0.01 * by_engine);
  EXPECT_LT(copied_us(device) * 9, from_host);
  EXPECT_EQ(cuda.cuModuleUnload.raw(module), cuda::kSuccess);
}

TEST_F(Streams, OtherKernelsAreNotFound) {
  cuda::Module module = nullptr;
  EXPECT_EQ(cuda.cuModuleLoadData.raw(&module, "no kernels at all"), cuda::kInvalidImage);
  ASSERT_EQ(cuda.cuModuleLoadData.raw(&module, kModule), cuda::kSuccess);
  cuda::Function function = nullptr;
  EXPECT_EQ(cuda.cuModuleGetFunction.raw(&function, module, "somebody_elses"), cuda::kNotFound);
  EXPECT_EQ(cuda.cuModuleGetFunction.raw(&function, module, copy::kChecksumItemsKernel), cuda::kNotFound)
      << "not in this module";
  EXPECT_EQ(cuda.cuModuleUnload.raw(module), cuda::kSuccess);
}

TEST_F(Streams, NeedAContext) {
  ASSERT_EQ(cuda.cuCtxSetCurrent.raw(nullptr), cuda::kSuccess);
  cuda::Stream none = nullptr;
  EXPECT_EQ(cuda.cuStreamCreate.raw(&none, 0), cuda::kInvalidContext);
  EXPECT_EQ(cuda.cuMemcpyDtoDAsync.raw(other, device, 1, stream), cuda::kInvalidContext);
  client.use(0);
  cuda.cuDevicePrimaryCtxRelease.raw(0);
}

}  // namespace
}  // namespace baton::test
