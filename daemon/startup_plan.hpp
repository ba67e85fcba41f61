// SPDX-License-Identifier: Apache-2.0
/// What a start does about what it finds. Decisions only: no I/O, no segment, no database. daemon/startup.cpp inspects
/// both, asks here, and carries out the answer.
///
/// decide(): the first row that fits. "differs": the database is older or another one; "same" includes unknown.
/// "damaged" includes another layout.
///
///   segment | database | further                                      | make        | then, the database's list
///   --------+----------+----------------------------------------------+-------------+--------------------------
///   none    | any      |                                              | create      | add
///   sound   | differs  |                                              | keep        | verify
///   sound   | same     | another size is configured, is large enough, | resize      | add
///           |          | and nothing is unsettled                     |             |
///   sound   | same     | attach set something aside                   | keep        | add
///   sound   | same     |                                              | keep        | none
///   damaged | differs  |                                              | salvage_all | verify
///   damaged | same     |                                              | salvage     | add
///
/// Some obstacles show only when a plan is carried out. decide_again() says what is tried next:
///
///   plan        | obstacle                          | next
///   ------------+-----------------------------------+---------------------------------------------------------------
///   resize      | not_made, left_out, list_too_long | what decide() says where the size is the configured one
///   keep        | list_too_long                     | enlarge, then the same with the list
///   salvage     | left_out, list_too_long           | write_out
///   salvage_all | not_made                          | salvage_all at the size without the former segment's own, once
///   salvage_all | list_too_long                     | write_out, then verify
///   otherwise                                       | nothing: the start fails; a sound segment that is full is served
///                                                   | without the database (Server::open_segment)
#pragma once

#include <cstdint>
#include <optional>

namespace stepstash::daemon {

/// What a start found. Sizes are bytes of segment.
struct Found {
  enum class Segment {
    none,
    sound,         ///< attached
    damaged,       ///< not to be trusted as a whole
    other_layout,  ///< made by a program that lays out segments differently
  };
  /// How the database relates to the one that the segment's clean values are in. A new, empty database is another one.
  enum class Database {
    unknown,  ///< there is no segment, or its header cannot be read
    same,
    older,  ///< the same one, but an earlier copy of it: it may lack what is clean
    other,
  };
  Segment segment = Segment::none;
  Database database = Database::unknown;
  /// Attach set something aside: what replaces it may be in the database.
  bool set_aside = false;
  /// An earlier start, or this one, took out entries, and the database has not been asked for them yet (L3).
  bool unsettled = false;

  struct Room {
    std::uint64_t configured = 0;   ///< whole pages
    std::uint64_t list = 0;         ///< for all that the database has, evicted
    std::uint64_t list_builds = 0;  ///< builds in it
    // Of a segment:
    std::uint64_t segment = 0;         ///< what it has; for a damaged one, as far as its header says
    std::uint64_t segment_builds = 0;  ///< its builds; for a damaged one, room for that many
    std::uint64_t segment_only = 0;    ///< sound: for its dirty values and all its records, if the size is to change
    std::uint64_t both = 0;            ///< damaged: for all that it may hold on top of the list
  };
  Room room;

  bool differs() const noexcept { return database == Database::older || database == Database::other; }
};

/// How to come by a segment, and what to do with the database's list of entries then.
struct Plan {
  enum class Make {
    keep,         ///< the one attached, as it is
    create,       ///< an empty one
    resize,       ///< a new one, with what only the attached one has
    enlarge,      ///< a new one with room for both, with all that is resident, and the records of evicted values
    salvage,      ///< a new one, with the sound dirty entries of the damaged one
    salvage_all,  ///< the same, and then sound clean ones as far as there is room
    write_out,    ///< a new one, with the database's list first; then sound dirty values go to the database, or else
                  ///< where room is left
  };
  enum class List {
    none,
    add,     ///< add what the segment lacks
    verify,  ///< and check what the segment calls evicted: this database may not have it
  };
  Make make = Make::create;
  List list = List::add;
  std::uint64_t bytes = 0;   ///< of a new segment; for `enlarge`, at least
  std::uint64_t builds = 0;  ///< of a new segment; for `enlarge`, found while doing it
  /// Everything resident has to be written: "clean" does not refer to this database.
  bool all_dirty = false;

  /// A new segment takes the place of what was found.
  bool replaces() const noexcept { return make != Make::keep; }
  /// What was found is kept under another name.
  bool keeps_former() const noexcept {
    return make == Make::salvage || make == Make::salvage_all || make == Make::write_out;
  }
  /// Rows of the database are read.
  bool reads_list() const noexcept { return list != List::none || make == Make::write_out; }

  friend bool operator==(const Plan&, const Plan&) = default;
};

/// Why a plan could not be carried out.
enum class Obstacle {
  not_made,       ///< the new segment, or the room in it for what it has to hold
  left_out,       ///< a dirty entry that could be saved found no room
  list_too_long,  ///< no room for the database's list
  failed,         ///< anything else: no plan helps
};

Plan decide(const Found& found) noexcept;
/// nullopt: there is no other way.
std::optional<Plan> decide_again(const Found& found, const Plan& tried, Obstacle obstacle) noexcept;

}  // namespace stepstash::daemon
