# tests/unit/<layer>/test_x.c is a Criterion program linked to that layer only,
# so that it starts fast; tests/race/<layer>/race_x.c is a plain program with
# real threads, because Criterion does not start under TSan.
pkg_check_modules(CRITERION IMPORTED_TARGET criterion)
# Assertions are most of a test: -O2 would take them twice as long to compile.
set(QUICK -O1)
# And -O1 takes four times as long as none for those of whole engines and servers,
# which compute nothing themselves.
set(QUICK_scheduler -O0)
set(QUICK_rpc -O0)

# What the sanitizers do in all tests: a test that provokes "no memory" needs a
# NULL, not an abort; an undefined operation ends the run.
set(SANITIZER_ENVIRONMENT
  "ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1"
  "LSAN_OPTIONS=print_suppressions=0:suppressions=${PROJECT_SOURCE_DIR}/tests/unit/lsan.supp"
  "UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1"
  "TSAN_OPTIONS=halt_on_error=1:suppressions=${PROJECT_SOURCE_DIR}/tests/race/tsan.supp")

foreach(name IN LISTS GODWIT_LAYERS)
  if(NOT TARGET ${name})
    continue()
  endif()
  file(GLOB unit_files CONFIGURE_DEPENDS tests/unit/${name}/test_*.c)
  foreach(file IN LISTS unit_files)
    get_filename_component(stem ${file} NAME_WE)
    string(REPLACE "test_" "" stem ${stem})
    if(CRITERION_FOUND AND NOT GODWIT_SANITIZE STREQUAL "thread")
      add_executable(test_${name}_${stem} ${file})
      target_link_libraries(test_${name}_${stem} PRIVATE ${name} PkgConfig::CRITERION)
      target_compile_options(test_${name}_${stem} PRIVATE ${STRICT_TESTS} ${QUICK}
        ${QUICK_${name}})
      add_test(NAME unit.${name}.${stem} COMMAND test_${name}_${stem}
        WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
      # Criterion passes an empty run, and a test that leaked: so we read it.
      set_tests_properties(unit.${name}.${stem} PROPERTIES LABELS unit TIMEOUT 1200
        ENVIRONMENT "${SANITIZER_ENVIRONMENT}"
        FAIL_REGULAR_EXPRESSION "Tested: 0 ;LeakSanitizer;runtime error:")
    endif()
  endforeach()

  file(GLOB race_files CONFIGURE_DEPENDS tests/race/${name}/race_*.c)
  foreach(file IN LISTS race_files)
    get_filename_component(stem ${file} NAME_WE)
    string(REPLACE "race_" "" stem ${stem})
    add_executable(race_${name}_${stem} ${file})
    list(APPEND races race_${name}_${stem})
    target_link_libraries(race_${name}_${stem} PRIVATE ${name})
    target_compile_options(race_${name}_${stem} PRIVATE ${STRICT})
    add_test(NAME race.${name}.${stem} COMMAND race_${name}_${stem}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(race.${name}.${stem} PROPERTIES LABELS race TIMEOUT 1200
      ENVIRONMENT "${SANITIZER_ENVIRONMENT}")
  endforeach()
endforeach()

add_custom_target(races DEPENDS ${races}) # all that a build for them needs

# Whole models over hundreds of steps, or the reference over thousands of
# tokens: with sanitizers they would take many minutes, and what they run is run
# by shorter tests as well. ops/test.sh leaves them to the release build.
foreach(stem policies device_policies exact capped)
  if(TARGET test_state_${stem})
    set_tests_properties(unit.state.${stem} PROPERTIES LABELS "unit;long"
      TIMEOUT 2400)
  endif()
endforeach()

# Once more with all memory on a device: kernels/apart/apart.h.
foreach(stem snapshot snapshot_damage)
  if(TARGET test_state_${stem})
    add_test(NAME unit.state.${stem}.apart COMMAND test_state_${stem}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(unit.state.${stem}.apart PROPERTIES LABELS unit
      TIMEOUT 1200 ENVIRONMENT "${SANITIZER_ENVIRONMENT};GODWIT_BACKEND=apart"
      FAIL_REGULAR_EXPRESSION "Tested: 0 ;LeakSanitizer;runtime error:")
  endif()
endforeach()

# Further tests (lint, golden, e2e, fuzz) each bring a file of their own.
file(GLOB more CONFIGURE_DEPENDS tests/*/tests.cmake)
foreach(file IN LISTS more)
  include(${file})
endforeach()

# All that tests of the labels unit and fuzz run: a sanitized build for these
# leaves out servers, simulations and what measures.
get_property(units DIRECTORY PROPERTY BUILDSYSTEM_TARGETS)
list(FILTER units INCLUDE REGEX
  "^(test|fuzz)_|^gpu_(ops|model)$|^fake_server$|^proto_python$")
add_custom_target(units DEPENDS ${units})

# The longest first, so that none of them is left alone at the end: a build
# directory that has run no test yet does not know. Of one cost is enough.
foreach(name eval.run golden.godwit-tiny golden.judge unit.state.exact
    unit.kernels.attend unit.kernels.index unit.kernels.delta unit.state.capped
    unit.state.policies unit.scheduler.engine_change unit.scheduler.engine_swap
    unit.scheduler.engine_chaos unit.scheduler.engine_paged unit.state.pass
    gpu.node.memory gpu.node.policy gpu.node.change)
  if(TEST ${name})
    set_tests_properties(${name} PROPERTIES COST 100)
  endif()
endforeach()
