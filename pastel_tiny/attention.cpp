// Attention with heads of eight channels, and its gradients, on one core. See attention.py.
//
// Queries, keys and values are (heads, tokens, 8). Keys and values are turned into rows of one channel, so that one
// vector register holds a channel of eight tokens. Four queries are computed at once, and share what is loaded.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

constexpr int D = 8, Q = 4;
typedef float Vector __attribute__((vector_size(32), aligned(4)));

float sum(Vector v) { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); }

// (n, D) -> (D, padded), with zeros in the padding.
void turn(const float* rows, int n, int padded, float* turned) {
    std::memset(turned, 0, sizeof(float) * D * padded);
    for (int j = 0; j < n; j++)
        for (int d = 0; d < D; d++) turned[d * padded + j] = rows[j * D + d];
}

// products[i][j] = factor * rows[i] . turned[:, j]
void multiply(const float* rows, float factor, const float* turned, int padded, float* products) {
    for (int j = 0; j < padded; j += 8) {
        Vector total[Q] = {};
        for (int d = 0; d < D; d++) {
            const Vector channel = *(const Vector*)(turned + d * padded + j);
            for (int i = 0; i < Q; i++) total[i] += channel * (rows[i * D + d] * factor);
        }
        for (int i = 0; i < Q; i++) *(Vector*)(products + i * padded + j) = total[i];
    }
}

// rows[i] = factor[i] * sum over j of weights[i][j] * turned[:, j]
void mix(const float* weights, const float* turned, int padded, const float* factor, float* rows) {
    for (int half = 0; half < D; half += 2) {
        Vector total[Q][2] = {};
        for (int j = 0; j < padded; j += 8) {
            const Vector a = *(const Vector*)(turned + half * padded + j);
            const Vector b = *(const Vector*)(turned + (half + 1) * padded + j);
            for (int i = 0; i < Q; i++) {
                const Vector weight = *(const Vector*)(weights + i * padded + j);
                total[i][0] += weight * a;
                total[i][1] += weight * b;
            }
        }
        for (int i = 0; i < Q; i++)
            for (int k = 0; k < 2; k++) rows[i * D + half + k] = factor[i] * sum(total[i][k]);
    }
}

// turned[:, j] += sum over i of weights[i][j] * rows[i]
void spread(const float* weights, const float* rows, int padded, float* turned) {
    for (int j = 0; j < padded; j += 8) {
        Vector weight[Q];
        for (int i = 0; i < Q; i++) weight[i] = *(const Vector*)(weights + i * padded + j);
        for (int d = 0; d < D; d++) {
            Vector* channel = (Vector*)(turned + d * padded + j);
            Vector total = *channel;
            for (int i = 0; i < Q; i++) total += weight[i] * rows[i * D + d];
            *channel = total;
        }
    }
}

int upward(int n, int step) { return (n + step - 1) / step * step; }

// Four queries' rows, with zeros beyond the last one.
void take(const float* rows, int first, int count, float* taken) {
    std::memset(taken, 0, sizeof(float) * Q * D);
    std::memcpy(taken, rows + first * D, sizeof(float) * count * D);
}

}  // namespace

extern "C" {

void attend(const float* query, const float* key, const float* value, int heads, int n, int m, float scale,
            float* output, float* logsum) {
    const int padded = upward(m, 8);
    std::vector<float> keys(D * padded), values(D * padded), weights(Q * padded);
    for (int h = 0; h < heads; h++) {
        turn(key + h * m * D, m, padded, keys.data());
        turn(value + h * m * D, m, padded, values.data());
        for (int first = 0; first < n; first += Q) {
            const int count = n - first < Q ? n - first : Q;
            float rows[Q * D], mixed[Q * D], share[Q];
            take(query + h * n * D, first, count, rows);
            multiply(rows, scale, keys.data(), padded, weights.data());
            for (int i = 0; i < Q; i++) {
                float* row = weights.data() + i * padded;
                float largest = row[0], total = 0;
                for (int j = 0; j < m; j++) largest = row[j] > largest ? row[j] : largest;
#pragma omp simd reduction(+ : total)
                for (int j = 0; j < m; j++) {
                    row[j] = expf(row[j] - largest);
                    total += row[j];
                }
                for (int j = m; j < padded; j++) row[j] = 0;
                share[i] = 1 / total;
                if (i < count) logsum[h * n + first + i] = largest + logf(total);
            }
            mix(weights.data(), values.data(), padded, share, mixed);
            std::memcpy(output + (h * n + first) * D, mixed, sizeof(float) * count * D);
        }
    }
}

void attend_backward(const float* query, const float* key, const float* value, const float* output,
                     const float* logsum, const float* wanted, int heads, int n, int m, float scale,
                     float* of_query, float* of_key, float* of_value) {
    const int padded = upward(m, 8);
    std::vector<float> keys(D * padded), values(D * padded), weights(Q * padded), changes(Q * padded);
    std::vector<float> key_sums(D * padded), value_sums(D * padded);
    for (int h = 0; h < heads; h++) {
        turn(key + h * m * D, m, padded, keys.data());
        turn(value + h * m * D, m, padded, values.data());
        std::fill(key_sums.begin(), key_sums.end(), 0.0f);
        std::fill(value_sums.begin(), value_sums.end(), 0.0f);
        for (int first = 0; first < n; first += Q) {
            const int count = n - first < Q ? n - first : Q;
            float rows[Q * D], gradients[Q * D], mixed[Q * D];
            const float factor[Q] = {scale, scale, scale, scale};
            take(query + h * n * D, first, count, rows);
            take(wanted + h * n * D, first, count, gradients);
            multiply(rows, scale, keys.data(), padded, weights.data());
            multiply(gradients, 1, values.data(), padded, changes.data());
            for (int i = 0; i < Q; i++) {
                float *row = weights.data() + i * padded, *change = changes.data() + i * padded;
                if (i >= count) {
                    std::memset(row, 0, sizeof(float) * padded);
                    std::memset(change, 0, sizeof(float) * padded);
                    continue;
                }
                const int place = h * n + first + i;
                float along = 0;
                for (int d = 0; d < D; d++) along += gradients[i * D + d] * output[place * D + d];
                const float offset = logsum[place];
#pragma omp simd
                for (int j = 0; j < m; j++) {
                    row[j] = expf(row[j] - offset);
                    change[j] = row[j] * (change[j] - along);
                }
                for (int j = m; j < padded; j++) row[j] = change[j] = 0;
            }
            mix(changes.data(), keys.data(), padded, factor, mixed);
            std::memcpy(of_query + (h * n + first) * D, mixed, sizeof(float) * count * D);
            spread(changes.data(), rows, padded, key_sums.data());
            spread(weights.data(), gradients, padded, value_sums.data());
        }
        for (int j = 0; j < m; j++)
            for (int d = 0; d < D; d++) {
                of_key[(h * m + j) * D + d] = scale * key_sums[d * padded + j];
                of_value[(h * m + j) * D + d] = value_sums[d * padded + j];
            }
    }
}
}
