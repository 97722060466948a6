// A tuple that stays trivially copyable, which std::tuple does not promise; layers and params made of parts
// have to be.
#pragma once

#include <concepts>
#include <cstddef>
#include <utility>

namespace sluice {

template <std::size_t I, class T>
struct part {
    T value;
};

template <class Indices, class... T>
struct parts_of;
template <std::size_t... I, class... T>
struct parts_of<std::index_sequence<I...>, T...> : part<I, T>... {
    constexpr parts_of() requires(std::default_initializable<T>&&...) : part<I, T>{T{}}... {}
    constexpr parts_of(const T&... values) requires(sizeof...(T) > 0) : part<I, T>{values}... {}
};

template <class... T>
struct parts : parts_of<std::index_sequence_for<T...>, T...> {
    using parts_of<std::index_sequence_for<T...>, T...>::parts_of;
};
template <class... T>
parts(T...) -> parts<T...>;

template <std::size_t I, class T>
constexpr T& get(part<I, T>& p) {
    return p.value;
}
template <std::size_t I, class T>
constexpr const T& get(const part<I, T>& p) {
    return p.value;
}

} // namespace sluice
