// Runs the kernels of src/language/cuda/*.cu on the processor.
//
// Standard input is a number of requests, the machine's own bytes: a `Request`, and then as many arrays, each a u64
// number of bytes and these. Standard output is what a request leaves of its first array.
//
// Compiled with HEAD and LANES, which attention.cu wants.

#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

// What the files take from CUDA. Each of the functions with _rn rounds once; no compiler may join two, as they are
// not inlined.
#define __device__ static
#define __global__
#define __launch_bounds__(threads)

struct Index {
    unsigned x, y;
};
static Index blockIdx, blockDim;
static thread_local Index threadIdx;

struct float4 {
    float x, y, z, w;
};

static __attribute__((noinline)) float __fmul_rn(float a, float b) { return a * b; }
static __attribute__((noinline)) float __fadd_rn(float a, float b) { return a + b; }
static float __int2float_rn(int a) { return (float)a; }
static unsigned __float_as_uint(float a) {
    unsigned bits;
    memcpy(&bits, &a, 4);
    return bits;
}
static float __uint_as_float(unsigned a) {
    float value;
    memcpy(&value, &a, 4);
    return value;
}

// Where the 32 threads of a warp wait for each other.
struct Barrier {
    std::mutex mutex;
    std::condition_variable all;
    unsigned here = 0, turn = 0;

    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        unsigned own = turn;
        if (++here == 32) {
            here = 0;
            turn++;
            all.notify_all();
        } else {
            all.wait(lock, [&] { return turn != own; });
        }
    }
};
static Barrier warp;
static unsigned exchanged[32];

template <typename T> static T __shfl_xor_sync(unsigned, T value, int far) {
    unsigned lane = threadIdx.x % 32;
    memcpy(&exchanged[lane], &value, 4);
    warp.wait();
    memcpy(&value, &exchanged[lane ^ far], 4);
    warp.wait();
    return value;
}

#include "direction.cu"
#undef THREADS
#include "pass.cu"
#include "attention.cu"

// The threads of a grid one after the other.
static void launch(unsigned blocks, unsigned threads, const std::function<void()> &kernel) {
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) {
            kernel();
        }
    }
}

// Its warps one after the other, the threads of each at once.
static void launch_warps(unsigned blocks, unsigned rows, unsigned threads, const std::function<void()> &kernel) {
    blockDim.x = threads;
    for (blockIdx.y = 0; blockIdx.y < rows; blockIdx.y++) {
        for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
            for (unsigned first = 0; first < threads; first += 32) {
                std::vector<std::thread> lanes;
                for (unsigned lane = 0; lane < 32; lane++) {
                    lanes.emplace_back([&, lane] {
                        threadIdx.x = first + lane;
                        kernel();
                    });
                }
                for (std::thread &lane : lanes) {
                    lane.join();
                }
            }
        }
    }
    blockIdx.y = 0;
}

template <typename T> static bool read(T *to, size_t count) {
    return fread(to, sizeof(T), count, stdin) == count;
}

struct Request {
    u32 kind, arrays, blocks, rows;
    u32 numbers[4];
    float reals[2];
    Key key;
};

int main() {
    Request request;
    while (read(&request, 1)) {
        // Of numbers of 64 bits, so that everything in them is where it may be.
        std::vector<std::vector<u64>> arrays(request.arrays);
        u64 written = 0;
        for (u32 at = 0; at < request.arrays; at++) {
            u64 bytes;
            if (!read(&bytes, 1)) {
                return 1;
            }
            arrays[at].resize((bytes + 7) / 8 + 1);
            if (!read((char *)arrays[at].data(), bytes)) {
                return 1;
            }
            written = at == 0 ? bytes : written;
        }
        auto floats = [&](int at) { return (float *)arrays[at].data(); };
        auto words = [&](int at) { return (u32 *)arrays[at].data(); };
        auto ints = [&](int at) { return (int *)arrays[at].data(); };
        auto parts = [&](int at) { return (Part *)arrays[at].data(); };
        u32 *n = request.numbers;
        float *r = request.reals;
        unsigned blocks = request.blocks;
        switch (request.kind) {
        case 0:
            launch(blocks, THREADS, [&] { write_view(floats(0), ints(1), parts(2), n[0]); });
            break;
        case 1:
            launch(blocks, THREADS, [&] { write_end(floats(0), ints(1), parts(2), n[0], request.key, r[0]); });
            break;
        case 2:
            launch(blocks, THREADS, [&] {
                add_directions(ints(0), parts(1), n[0], (Key *)words(2), words(3), n[1]);
            });
            break;
        case 3:
            launch(blocks, THREADS, [&] { add_bias(floats(0), floats(1), n[0]); });
            break;
        case 4:
            launch(blocks, THREADS, [&] { add_bias_and(floats(0), floats(1), floats(2), n[0]); });
            break;
        case 5:
            launch(blocks, THREADS, [&] { add(floats(0), floats(1), n[0]); });
            break;
        case 6:
            launch(blocks, THREADS, [&] { bias_activation(floats(0), floats(1), n[0], n[1]); });
            break;
        case 7:
            launch(blocks, THREADS, [&] { silu_times(floats(0), floats(1), n[0]); });
            break;
        case 8:
            launch_warps(blocks, 1, THREADS, [&] { layer_norm(floats(0), floats(1), floats(2), n[0], n[1], r[0]); });
            break;
        case 9:
            launch_warps(blocks, 1, THREADS, [&] { rms_norm(floats(0), floats(1), floats(2), n[0], n[1], r[0]); });
            break;
        case 10:
            launch(blocks, THREADS, [&] { rotate(floats(0), words(1), floats(2), floats(3), n[0], n[1]); });
            break;
        case 11:
            launch_warps(blocks, 1, THREADS, [&] { cross_entropy(floats(0), floats(1), words(2), n[0], n[1]); });
            break;
        case 12:
            launch_warps(blocks, 1, THREADS, [&] { pool(floats(0), floats(1), words(2), n[0], n[1]); });
            break;
        case 13:
            launch_warps(blocks, request.rows, WARP, [&] {
                attention(floats(0), floats(1), floats(2), floats(3), words(4), n[0], n[1], r[0], n[2]);
            });
            break;
        default:
            return 1;
        }
        if (fwrite(arrays[0].data(), 1, written, stdout) != written) {
            return 1;
        }
    }
    return 0;
}
